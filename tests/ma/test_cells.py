"""Distinct cells: what shares a row sees the same; and the trunk learns from them what it learns from whole images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mgran_fast import ops
from mgran_fast.data.synthetic import render
from mgran_fast.ma import trunk as trunk_module
from mgran_fast.ma.cells import Cells, Sight
from mgran_fast.ma.norm import SharedBatchNorm2d
from mgran_fast.ma.trunk import Trunk


def people(count: int, size: tuple[int, int] = (128, 64)) -> torch.Tensor:
    """Aligned inputs of synthetic people, float64 [count, 4, 3, H, W]."""
    views = [render(person, 0, 0, size=size) for person in range(count)]
    crops, masks, keypoints = (
        torch.stack([torch.from_numpy(getattr(view, name)) for view in views]) for name in ("crop", "mask", "keypoints")
    )
    return ops.inputs(crops, ops.regions(masks, keypoints, size)).double()


def test_cells_of_one_row_see_the_same() -> None:
    images = people(3, (64, 32)).flatten(0, 1)
    sight, features = Sight.of(images, 4), images
    for kernel, stride, padding in ((7, 2, 3), (3, 2, 1), (3, 1, 1), (1, 1, 0), (3, 2, 1)):
        sight = sight.through(kernel, stride, padding)
        generator = torch.Generator().manual_seed(kernel)
        weight = torch.randn(8, features.shape[1], kernel, kernel, dtype=torch.float64, generator=generator)
        features = nn.functional.conv2d(features, weight, torch.ones(8, dtype=torch.float64), stride, padding).tanh()
        cells = sight.cells()
        matrix = features.permute(0, 2, 3, 1).reshape(-1, 8)
        # Each row is its first cell, and every cell is its row.
        assert torch.equal(cells.table.flatten()[cells.places.long()], torch.arange(len(cells), dtype=torch.int32))
        assert torch.equal(matrix, matrix[cells.places.long()][cells.table.flatten().long()])
        assert float(cells.counts.sum()) == len(matrix)
        assert float(cells.counts.min()) >= 1
        assert len(cells) < 0.8 * len(matrix)


def test_sight_goes_through_windows_as_maximum_pooling() -> None:
    bits = torch.randint(0, 4, (3, 21, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for kernel, stride, padding in ((7, 2, 3), (3, 1, 1), (3, 2, 1), (2, 2, 0), (1, 2, 0), (5, 3, 2)):
        got = Sight(bits, 1).through(kernel, stride, padding).bits
        for bit in (1, 2):
            want = nn.functional.max_pool2d((bits & bit).float(), kernel, stride, padding)
            assert torch.equal((got & bit).float(), want), (kernel, stride, padding)


def test_share() -> None:
    sight = Sight.of(people(2).flatten(0, 1), 4).through(7, 2, 3)
    # What no image shows is left out: at most one image's cells.
    assert 0 <= len(sight.cells()) - sight.share * sight.bits.numel() <= sight.bits[0].numel()


def test_windows() -> None:
    """A convolution by windows of rows is one of images."""
    images = people(2, (32, 16)).flatten(0, 1)
    before = Sight.of(images, 4).through(3, 1, 1)
    maps = nn.functional.conv2d(images, torch.randn(5, 3, 3, 3, dtype=torch.float64), padding=1)
    for kernel, stride, padding in ((3, 2, 1), (1, 2, 0), (3, 1, 1), (1, 1, 0)):
        after = before.through(kernel, stride, padding)
        old, new = before.cells(), after.cells()
        weight = torch.randn(6, 5, kernel, kernel, dtype=torch.float64)
        want = nn.functional.conv2d(maps, weight, stride=stride, padding=padding)
        read = new.windows(old, kernel, stride, padding).gather(rows_of(maps, old)).view(len(new), -1)
        got = read @ weight.permute(0, 2, 3, 1).reshape(6, -1).t()
        torch.testing.assert_close(got, rows_of(want, new), rtol=1e-12, atol=1e-12)


def rows_of(maps: torch.Tensor, cells: Cells) -> torch.Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])[cells.places.long()]


def trunk_of(name: str, inputs: int) -> Trunk:
    torch.manual_seed(0)
    trunk = Trunk(name, inputs=inputs).double()
    for module in trunk.modules():
        if isinstance(module, SharedBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return trunk.train()


def learn(trunk: Trunk, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The features, every gradient, and every buffer after the step."""
    features = trunk(images)
    slope = torch.randn(features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (features * slope.to(features.dtype)).sum().backward()
    grads = {f"grad {name}": value.grad for name, value in trunk.named_parameters() if value.grad is not None}
    assert len(grads) == len(list(trunk.parameters()))
    return {"features": features.detach(), **grads, **{name: value.double() for name, value in trunk.named_buffers()}}


@pytest.mark.parametrize("inputs", [4, 1])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_trunk_learns_the_same(name: str, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # All stages by distinct cells, and, as it comes, the first ones.
    images = people(2)[:, :inputs].flatten(0, 1)
    whole = trunk_of(name, inputs)
    whole.distinct = False
    want = learn(whole, images)
    for many in (2.0, 0.8):
        monkeypatch.setattr(trunk_module, "_MANY", many)
        trunk = trunk_of(name, inputs)
        again = copy.deepcopy(trunk)
        again.recompute = True
        got, recomputed = learn(trunk, images), learn(again, images)
        assert got.keys() == want.keys()
        for key, value in want.items():
            error = (got[key] - value).abs().max()
            assert error <= 1e-10 * value.abs().max().clamp(min=1e-3), (key, float(error))
            assert torch.equal(got[key], recomputed[key]), key


def test_gradients_of_images_are_of_their_own_pixels() -> None:
    images = people(2).flatten(0, 1)
    found = []
    for distinct in (True, False):
        trunk, given = trunk_of("resnet18", 4), images.clone().requires_grad_()
        trunk.distinct = distinct
        trunk(given).square().sum().backward()
        found.append(given.grad)
    assert torch.equal(*found)


def test_less_is_kept() -> None:
    images = people(2, (256, 128)).flatten(0, 1).float()
    kept = []
    for distinct in (True, False):
        trunk = trunk_of("resnet50", 4).float()
        trunk.distinct, trunk.recompute = distinct, True
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trunk(images)
        kept.append(sum(sizes.values()) - sum(parameter.numel() for parameter in trunk.parameters()))
    assert kept[0] < 0.75 * kept[1]


def test_images_without_background_are_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(4, 3, 64, 32, dtype=torch.float64)

    def refuse(self: Sight) -> Cells:
        raise AssertionError("nothing is to be left out here")

    monkeypatch.setattr(Sight, "cells", refuse)
    trunk_of("resnet18", 1)(images).sum().backward()
