"""Every op as torch sees it: opcheck, torch.compile, torch.export, autocast, dynamic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mgran_fast import ops
from mgran_fast.ops import backend

OPS = torch.ops.mgran_fast
STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


FRAME, BOXES = picture(40, 50, 3), torch.tensor([[3.0, 4.0, 30.5, 38.0], [-5.0, -5.0, 20.0, 20.0]])
CROPS, MASK, KEYPOINTS = picture(2, 20, 11, 3), rand(2, 10, 7), rand(2, 17, 3) * 20
MAP = ops.regions(MASK, KEYPOINTS, (20, 11))
FEATURES, REGION = rand(8, 5, 4, 3).to(memory_format=torch.channels_last), torch.arange(4).repeat(2)
OUT, GRAD = rand(8, 5), rand(8, 5)
WEIGHT, BIAS, RESIDUAL = rand(5) + 0.5, rand(5), rand(8, 5, 4, 3) - 0.9
# mean, invstd, scale and shift of two groups.
NORMED = (rand(2, 5), rand(2, 5) + 1, rand(2, 5) + 1, -rand(2, 5))


def test_every_op_is_checked() -> None:
    """A new op of the library must come into the table below."""
    names = {name for name in ops.__all__ if name.islower() and name != "visibility"}
    assert {case.split("-")[0] for case in CHECKED} == names | {"pooling_backward"} | {
        f"batchnorm_{step}" for step in ("statistics", "apply", "backward", "reduce", "grad")
    }


CHECKED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "crops": (OPS.crops, (FRAME, BOXES, 16, 9)),
    "crops-none": (OPS.crops, (FRAME, BOXES[:0], 16, 9)),
    **{
        f"regions-{name}": (OPS.regions, (MASK, KEYPOINTS, 20, 11, name, 0.5, 0.3))
        for name in ("region", "part", "box", "none")
    },
    **{
        f"inputs-{dtype}": (OPS.inputs, (CROPS, MAP, 1 / 256, *STATISTICS, dtype, 3))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    },
    **{
        f"align-{wanted}": (
            OPS.align,
            (CROPS, MASK, KEYPOINTS, "region", 0.5, 0.3, 1 / 256, *STATISTICS, torch.float32, wanted),
        )
        for wanted in (True, False)
    },
    "pointwise": (OPS.pointwise, (FEATURES, rand(6, 5), rand(6), None, None, None, 1, True)),
    "pointwise-residual": (OPS.pointwise, (FEATURES, rand(6, 5), rand(6), rand(8, 6, 4, 3), None, None, 1, False)),
    "pointwise-shortcut": (
        OPS.pointwise, (FEATURES, rand(6, 5), rand(6), None, rand(8, 2, 8, 5), rand(6, 2), 2, True)
    ),
    **{f"stem-{inputs}": (OPS.stem, (CROPS, MAP, rand(8, 224), rand(8), 4 - inputs, inputs)) for inputs in (1, 4)},
    **{f"pooling-{mode}": (OPS.pooling, (FEATURES, MAP, REGION, mode, 3.0)) for mode in ops.POOLING_MODES},
    "pooling-planes": (OPS.pooling, (FEATURES.contiguous(), MAP, REGION, "mean", 3.0)),
    **{
        f"pooling_backward-{mode}": (OPS.pooling_backward, (GRAD, FEATURES, MAP, REGION, OUT, mode, 3.0))
        for mode in ops.POOLING_MODES
    },
    "batchnorm": (OPS.batchnorm, (FEATURES, None, WEIGHT, BIAS, 1, 1e-5, False)),
    "batchnorm-residual": (OPS.batchnorm, (FEATURES, RESIDUAL, WEIGHT, BIAS, 2, 1e-5, True)),
    "batchnorm_statistics": (OPS.batchnorm_statistics, (FEATURES, 2)),
    "batchnorm_apply": (OPS.batchnorm_apply, (FEATURES, RESIDUAL, *NORMED[2:], True)),
    "batchnorm_apply-planes": (OPS.batchnorm_apply, (FEATURES.contiguous(), None, *NORMED[2:], False)),
    **{
        f"batchnorm_backward-{wanted}": (
            OPS.batchnorm_backward, (RESIDUAL, FEATURES, RESIDUAL, *NORMED, True, wanted)
        )
        for wanted in (True, False)
    },
    "batchnorm_reduce": (OPS.batchnorm_reduce, (RESIDUAL, FEATURES, RESIDUAL, *NORMED, True)),
    **{
        f"batchnorm_grad-{wanted}": (
            OPS.batchnorm_grad, (RESIDUAL, FEATURES, RESIDUAL, *NORMED, *NORMED[:2], True, wanted)
        )
        for wanted in (True, False)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_opcheck(name: str, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", choice)
    op, arguments = CHECKED[name]
    torch.library.opcheck(op.default, arguments)


class Everything(nn.Module):
    """From a frame to pooled features, through every op."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 6, 3, stride=2, padding=1)

    def forward(self, frame: torch.Tensor, boxes: torch.Tensor, mask: torch.Tensor, keypoints: torch.Tensor) -> Any:
        crops = ops.crops(frame, boxes, (24, 12))
        map_ = ops.regions(mask, keypoints, (24, 12))
        inputs = ops.inputs(crops, map_)
        fused = ops.align(crops, mask, keypoints, region_map=False).inputs
        features = self.trunk((inputs + fused).flatten(0, 1))
        region = torch.arange(4).repeat(boxes.shape[0])
        pooled = [ops.pooling(features, map_, region, mode) for mode in ops.POOLING_MODES]
        return torch.stack(pooled), ops.visibility(map_)


ARGUMENTS = (FRAME, BOXES, MASK, KEYPOINTS)


def test_export() -> None:
    model = Everything().eval()
    program = torch.export.export(model, ARGUMENTS, strict=False)
    want, got = model(*ARGUMENTS), program.module()(*ARGUMENTS)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    called = {str(node.target) for node in program.graph.nodes if "mgran_fast" in str(node.target)}
    assert called == {f"mgran_fast.{name}.default" for name in ("crops", "regions", "inputs", "align", "pooling")}


def test_export_with_any_number_of_people() -> None:
    people = torch.export.Dim("people", min=2, max=64)
    shapes = (None, {0: people}, {0: people}, {0: people})
    model = Everything().eval()
    program = torch.export.export(model, ARGUMENTS, dynamic_shapes=shapes, strict=False)
    three = FRAME, BOXES[[0, 1, 0]], MASK[[1, 0, 1]], KEYPOINTS[[1, 0, 0]]
    got, want = program.module()(*three), model(*three)
    assert got[0].shape == (3, 12, 6)
    assert torch.allclose(got[0], want[0], atol=1e-6)


def test_compile_without_a_graph_break() -> None:
    model = Everything()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want, got = model(*ARGUMENTS), compiled(*ARGUMENTS)
    assert torch.allclose(got[0], want[0], atol=1e-6)
    want[0].square().sum().backward()
    gradient = model.trunk.weight.grad
    assert gradient is not None
    gradient = gradient.clone()
    assert bool(gradient.any())
    model.zero_grad()
    got[0].square().sum().backward()
    assert model.trunk.weight.grad is not None
    assert torch.allclose(model.trunk.weight.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = Everything()
    with torch.autocast("cpu", dtype):
        pooled, _ = model(*ARGUMENTS)
    # The trunk gives half precision; pooling takes and returns it, and so does its gradient.
    assert pooled.dtype == dtype
    # Without the maximum: after rounding it may be another cell's.
    smooth = [ops.POOLING_MODES.index("mean"), ops.POOLING_MODES.index("gem")]
    pooled[smooth].float().square().sum().backward()
    gradient = model.trunk.weight.grad
    assert gradient is not None
    model.zero_grad()
    model(*ARGUMENTS)[0][smooth].square().sum().backward()
    assert model.trunk.weight.grad is not None
    error = (gradient - model.trunk.weight.grad).abs().max() / model.trunk.weight.grad.abs().max()
    assert bool(error <= 0.05)


@pytest.mark.parametrize("mode", ops.POOLING_MODES)
def test_a_second_derivative_is_refused(mode: str) -> None:
    features = FEATURES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        ops.pooling(features, MAP, REGION, mode).square().sum(), features, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_fakes_touch_no_memory() -> None:
    meta = [t.to("meta") for t in ARGUMENTS]
    crops = OPS.crops(meta[0], meta[1], 24, 12)
    assert (crops.device.type, crops.shape, crops.dtype) == ("meta", (2, 24, 12, 3), torch.uint8)


def test_kernels_run_on_the_cpu(native: Callable[..., Any]) -> None:
    for op, arguments in CHECKED.values():
        native(op.default, *arguments)


_FIRST_USES = """
import os, sys
from mgran_fast.ops import backend
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os.environ["MGRAN_CPU"] = name
        try:
            print(backend.extension().isa(), flush=True)
        except ValueError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_an_older_instruction_set_can_be_asked_for(extension: Any) -> None:
    """MGRAN_CPU is read once, at the first use: another process tells, which forks for each."""
    import subprocess
    import sys

    order = ["portable", "avx2", "avx512"]
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_USES, "", "portable", "avx2", "sse"], capture_output=True, text=True, check=True
    )
    by_default, portable, avx2, unknown = done.stdout.splitlines()
    assert by_default == extension.isa()
    assert portable == "portable"
    assert order.index(avx2) <= order.index("avx2")
    assert unknown == "MGRAN_CPU must be one of portable, avx2, avx512, not 'sse'"


def test_triton_runs_what_has_gradients_or_products() -> None:
    assert {name: name for name in ("batchnorm", "pooling", "pointwise", "stem")} == backend.TRITON
    reason = backend.why_not_native("pooling", "cuda")
    assert reason == "" or "Triton kernels" in reason
