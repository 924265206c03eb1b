"""Batch norm folded into the convolutions, ReLU6 and sums fused with them: the copy of a network that inference runs.

With W the weights of a convolution and gamma, beta, mu, v the batch norm's, batch norm(conv(x)) is a convolution with
weights W gamma / sqrt(v + eps) and bias beta + (b - mu) gamma / sqrt(v + eps): one pass over memory less a layer.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn

from mgran_fast.mra.convolution import Convolution

__all__ = ["Folded", "folded"]


class Folded:
    """The folded copy of a network: made at the first call, and again after its weights have changed.

    It is no module, so the state dict of whoever holds it stays what it is. Copies and pickles leave the folded copy
    behind. Training steps, ``load_state_dict`` and ``to`` are seen; writing through ``parameter.data`` is not.

    Args:
        network: any module that :func:`folded` takes.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._key: tuple[Any, ...] | None = None
        self._copy: nn.Module | None = None

    def __call__(self) -> nn.Module:
        key = weights_state(self.network)
        if self._copy is None or key != self._key:
            made = folded(self.network)
            # Key and copy go together: two threads at once make two equal copies, and one of them stays.
            self._copy, self._key = made, key
            return made
        return self._copy

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self.network, "_key": None, "_copy": None}


def weights_state(network: nn.Module) -> tuple[Any, ...]:
    """What changes whenever a weight does: in place (the version), by exchange (the identity) or by a move."""
    return tuple(
        (id(tensor), tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version)
        for tensor in (*network.parameters(), *network.buffers())
    )


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode, without gradients, channels_last, each batch norm in the convolution before.

    A batch norm or a ReLU6 is folded only where it is alone in using the result of a convolution; so is the sum of a
    convolution's result and another tensor. Every convolution becomes a :class:`Convolution`.

    Args:
        network: a module that torch.fx can trace and that calls no convolution twice. It is not changed.
    """
    with torch.no_grad():
        graph = fx.symbolic_trace(copy.deepcopy(network).eval())
        modules = dict(graph.named_modules())
        for node in list(graph.graph.nodes):
            before = _source(node, nn.BatchNorm2d, modules)
            if before is not None:
                convolution = modules[before.target]
                kind = convolution.weight.dtype
                weight, bias = fold(convolution, modules[node.target])
                convolution.weight, convolution.bias = (nn.Parameter(part.to(kind)) for part in (weight, bias))
                _replace(graph, node, before)
        relu6 = {before: node for node in graph.graph.nodes if (before := _source(node, nn.ReLU6, modules)) is not None}
        for node in list(graph.graph.nodes):
            if node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d):
                activation = "relu6" if node in relu6 else "none"
                _set(graph, node.target, Convolution(modules[node.target], activation=activation))
                if node in relu6:
                    _replace(graph, relu6[node], node)
        for node in list(graph.graph.nodes):
            if node.op == "call_function" and node.target is operator.add:
                _add(node, graph)
        graph.delete_all_unused_submodules()
        graph.recompile()
    return graph.requires_grad_(False).to(memory_format=torch.channels_last)


def _source(node: fx.Node, kind: type[nn.Module], modules: dict[str, nn.Module]) -> fx.Node | None:
    """The convolution that this node, a module of one kind, is alone in using; None where it is not so."""
    if node.op != "call_module" or not isinstance(modules[str(node.target)], kind):
        return None
    before = node.args[0]
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
        return None
    return before if isinstance(modules[str(before.target)], nn.Conv2d) else None


def _replace(graph: fx.GraphModule, node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    graph.graph.erase_node(node)


def _set(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(graph.get_submodule(parent), child, module)


def _add(node: fx.Node, graph: fx.GraphModule) -> None:
    """a + convolution(b): the convolution adds a itself, where its result goes nowhere else."""
    for mine, other in (node.args, node.args[::-1]):
        if not isinstance(mine, fx.Node) or not isinstance(other, fx.Node) or mine.op != "call_module":
            continue
        module = graph.get_submodule(str(mine.target))
        if isinstance(module, Convolution) and module.activation == "none" and len(mine.users) == 1 and mine != other:
            with graph.graph.inserting_before(node):
                # Here, and not where the convolution stands: the other summand may come after it.
                summed = graph.graph.call_module(str(mine.target), (mine.args[0], other))
            _replace(graph, node, summed)
            graph.graph.erase_node(mine)
            return


def fold(convolution: nn.Conv2d, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, float64, of the convolution that is this one with a batch norm after it.

    In float64: the product is then rounded once, and folding costs no accuracy.

    Args:
        norm: an nn.BatchNorm2d in eval mode, or a frozen one.
    """
    with torch.no_grad():
        gain = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        bias = torch.zeros_like(gain) if convolution.bias is None else convolution.bias.double()
        shift = norm.bias.double() + (bias - norm.running_mean.double()) * gain
        return convolution.weight.double() * gain[:, None, None, None], shift
