"""The program of a trunk computes what the trunk computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.engine.program import Convolution, MaxPool, Program, program
from mgran_fast.ma.trunk import Trunk


def answer(steps: Program, x: torch.Tensor) -> torch.Tensor:
    """The program in plain torch."""
    layers = [x]
    for step in steps.steps:
        if isinstance(step, MaxPool):
            layers.append(F.max_pool2d(layers[step.layer], step.tap.kernel, step.tap.stride, step.tap.padding))
            continue
        y = step.bias[:, None, None].to(x.dtype)
        for source in step.sources:
            weight = source.weight.to(x.dtype)
            y = y + F.conv2d(layers[source.layer], weight, None, source.tap.stride, source.tap.padding)
        if step.residual is not None:
            y = y + layers[step.residual]
        layers.append(y.relu())
    return layers[-1]


@pytest.mark.parametrize(("name", "last_stride"), [("resnet18", 1), ("resnet18", 2), ("resnet50", 1)])
def test_program_equals_the_trunk(name: str, last_stride: int) -> None:
    torch.manual_seed(0)
    trunk = Trunk(name, last_stride=last_stride).eval()
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.normal_(module.bias, std=0.1)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    steps = program(trunk)
    images = torch.rand(2, 3, 50, 37)
    with torch.no_grad():
        got, want = answer(steps, images), trunk(images)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert steps.layers((50, 37))[-1] == (*want.shape[2:], want.shape[1])
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


def test_multiply_adds_of_resnet50() -> None:
    steps = program(Trunk("resnet50", last_stride=2).eval())
    # 4.09 G at 224 x 224, as the literature has it, less the classifier's 2 M.
    assert steps.multiply_adds((224, 224)) / 1e9 == pytest.approx(4.087, abs=0.003)
    convolutions = [step for step in steps.steps if isinstance(step, Convolution)]
    assert len(convolutions) == 49  # and four shortcuts, which are second sources
    assert sum(len(step.sources) for step in convolutions) == 53
