"""Cases of pooling on the CPU, forward and backward; expected values are the reference's in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from abi import Buffer
from cases import DTYPES, Case, bits_of, garbage, seed_of
from mgran_fast.reference import pooling as reference

MODES = ("mean", "max", "gem")
# Relative to the output's numbers: rounding of the result, and of sums and powers in float32.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
# A gradient also inherits the rounding of the forward's result, times the power.
SLOPE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 5e-2}

# name, people, rows of each, channels, cells, map, dtype, mode, power, offset in elements
_POOLING = (
    ("no rows", 0, 0, 8, (4, 2), (8, 4), 0, "mean", 1.0, 0),
    ("no channels", 2, 1, 0, (4, 2), (8, 4), 0, "mean", 1.0, 0),
    ("one cell", 1, 1, 1, (1, 1), (1, 1), 0, "mean", 1.0, 0),
    ("mean", 3, 4, 64, (16, 8), (64, 32), 0, "mean", 1.0, 0),
    ("mean, f16", 3, 4, 64, (16, 8), (64, 32), 1, "mean", 1.0, 0),
    ("mean, bf16", 3, 4, 64, (16, 8), (64, 32), 2, "mean", 1.0, 0),
    ("mean, odd", 3, 2, 17, (5, 3), (33, 17), 0, "mean", 1.0, 1),
    ("mean, odd, f16", 2, 3, 37, (5, 3), (33, 17), 1, "mean", 1.0, 1),
    ("mean, small map", 2, 4, 33, (7, 5), (3, 2), 2, "mean", 1.0, 3),
    ("mean, many channels", 1, 4, 515, (4, 4), (16, 16), 0, "mean", 1.0, 0),
    ("max", 3, 4, 64, (16, 8), (64, 32), 0, "max", 1.0, 0),
    ("max, f16", 3, 4, 70, (5, 3), (33, 17), 1, "max", 1.0, 1),
    ("max, bf16", 2, 4, 31, (8, 4), (32, 16), 2, "max", 1.0, 0),
    ("gem 3", 3, 4, 64, (16, 8), (64, 32), 0, "gem", 3.0, 0),
    ("gem 3, f16", 3, 4, 40, (5, 3), (33, 17), 1, "gem", 3.0, 0),
    ("gem 3, bf16", 2, 4, 67, (8, 4), (32, 16), 2, "gem", 3.0, 1),
    ("gem 1", 2, 4, 33, (8, 4), (32, 16), 0, "gem", 1.0, 0),
    ("gem 2", 2, 4, 16, (8, 4), (32, 16), 0, "gem", 2.0, 0),
    ("gem 0.7", 2, 4, 33, (8, 4), (32, 16), 0, "gem", 0.7, 0),
    ("gem 6.5", 2, 4, 48, (8, 4), (32, 16), 0, "gem", 6.5, 1),
    ("gem 6.5, bf16", 2, 4, 29, (5, 3), (33, 17), 2, "gem", 6.5, 0),
    ("whole size", 2, 4, 256, (16, 8), (256, 128), 0, "mean", 1.0, 0),
    ("whole size, gem, bf16", 2, 4, 256, (16, 8), (256, 128), 2, "gem", 3.0, 0),
)


@dataclass
class _Setup:
    features: torch.Tensor  # [B, C, h, w] of the dtype
    map: torch.Tensor
    region: torch.Tensor
    arguments: dict[str, object]


def _setup(row: tuple, hidden: bool) -> _Setup:
    """``hidden``: infinities and NaN where nobody may look."""
    name, people, each, channels, cells, size, code, mode, power, offset = row
    generator = np.random.default_rng(seed_of(name))
    dtype = DTYPES[code]
    stripes = np.minimum(3, (np.arange(size[0]) * 4) // max(1, size[0]))[None, :, None]
    map_ = np.broadcast_to(stripes, (people, *size)).astype(np.uint8).copy()
    map_[generator.random(map_.shape) < 0.2] = 0
    if people > 1:
        map_[1] = 0  # nobody is seen
    region = np.arange(people * each, dtype=np.int64) % max(1, each)
    if each > 3 and people > 2:
        region[-3:] = (200, -1, 1 << 40)  # regions that do not occur
    shape = (people * each, channels, *cells)
    values = generator.normal(0.3, 1.0, shape).clip(0) if mode != "mean" else generator.normal(0.0, 1.0, shape)
    features = torch.from_numpy(values).to(dtype)
    visible = reference.shares(torch.from_numpy(map_), torch.from_numpy(region), *cells) > 0
    if hidden and features.numel():
        blind = (~visible)[:, None].expand(features.shape)
        strange = torch.tensor([float("inf"), float("-inf"), float("nan")]).to(dtype)
        features = torch.where(blind, strange[torch.arange(features.numel()).view(features.shape) % 3], features)
    item = features.element_size()
    arguments: dict[str, object] = {
        "features": Buffer(bits_of(features.permute(0, 2, 3, 1)), "in", offset * item),
        "map": Buffer(map_, "in", offset),
        "region": Buffer(region, "in", 8 * (offset % 2)),
        "rows": people * each,
        "people": people,
        "channels": channels,
        "height": cells[0],
        "width": cells[1],
        "map_height": size[0],
        "map_width": size[1],
        "dtype": code,
        "mode": MODES.index(mode),
        "power": power,
    }
    return _Setup(features, torch.from_numpy(map_), torch.from_numpy(region), arguments)


def forward_cases() -> Iterator[Case]:
    for row in _POOLING:
        name, code, mode, power, offset = row[0], *row[6:]
        dtype = DTYPES[code]
        setup = _setup(row, hidden=True)
        want = reference.pooling(setup.features.double(), setup.map, setup.region, mode, power)
        out = garbage(want.numel() * setup.features.element_size(), np.uint8, seed_of(name), "out")
        out.offset = offset * setup.features.element_size()
        yield Case(
            name,
            "pooling",
            setup.arguments | {"out": out},
            {"out": want.numpy()},
            heavy=name.startswith("whole"),
            dtype=dtype,
            tolerance={"out": TOLERANCE[dtype]},
        )


def backward_cases() -> Iterator[Case]:
    for row in _POOLING:
        name, code, mode, power, offset = row[0], *row[6:]
        dtype = DTYPES[code]
        setup = _setup(row, hidden=mode == "mean")
        features = setup.features.double().requires_grad_()
        out = reference.pooling(features, setup.map, setup.region, mode, power)
        generator = np.random.default_rng(seed_of(name) + 1)
        grad = torch.from_numpy(generator.normal(0, 1, tuple(out.shape))).to(dtype)
        out.backward(grad.double())
        assert features.grad is not None
        want = features.grad.permute(0, 2, 3, 1).contiguous()
        item = setup.features.element_size()
        written = garbage(want.numel() * item, np.uint8, seed_of(name), "out", offset * item)
        buffers = {
            "out": Buffer(bits_of(out.detach().to(dtype)), "in", offset * item),
            "grad_out": Buffer(bits_of(grad), "in", offset * item),
            "grad_features": written,
        }
        yield Case(
            name,
            "pooling_backward",
            setup.arguments | buffers,
            {"grad_features": want.numpy()},
            heavy=name.startswith("whole"),
            dtype=dtype,
            tolerance={"grad_features": SLOPE[dtype]},
        )
