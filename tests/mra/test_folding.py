"""Folding of batch norm: the same answers, fewer layers, the original untouched."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from mgran_fast.mra.folding import Folded, folded


class Small(nn.Module):
    """Batch norms that can be folded, and two that cannot: one without a convolution, one on a shared result."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.plain = nn.Conv2d(3, 4, 3, bias=False)
        self.after_plain = nn.BatchNorm2d(4)
        self.biased = nn.Conv2d(4, 4, 3, groups=4)
        self.after_biased = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.after_shared = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.after_plain(self.plain(self.first(x))))
        x = self.after_biased(self.biased(x))
        y = self.shared(x)
        return self.after_shared(y) + y


def small() -> Small:
    generator = torch.Generator().manual_seed(3)
    network = Small()
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return network.eval()


def test_same_answers_with_fewer_layers() -> None:
    network = small()
    before = copy.deepcopy(network.state_dict())
    quick = folded(network)
    x = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(quick(x), network(x), atol=1e-4, rtol=1e-5)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) == 2
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_it_is_made_again_only_when_a_weight_changed() -> None:
    network = small()
    holder = Folded(network)
    first = holder()
    assert holder() is first
    with torch.no_grad():
        network.plain.weight.mul_(2)
    second = holder()
    assert second is not first
    network.load_state_dict(small().state_dict())
    assert holder() is not second
    third = holder()
    network.double()
    assert holder() is not third
    assert next(holder().parameters()).dtype == torch.float64


def test_a_training_network_is_folded_as_in_eval_mode() -> None:
    network = small()
    x = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = network(x)
        network.train()
        torch.testing.assert_close(folded(network)(x), want, atol=1e-4, rtol=1e-5)
    assert network.training


def test_a_pickle_leaves_the_copy_behind() -> None:
    holder = Folded(small())
    holder()
    again = pickle.loads(pickle.dumps(holder))
    assert again._copy is None
    x = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again()(x), holder()(x))
