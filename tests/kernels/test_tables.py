"""The tables of tile sizes: complete, sane, and the nearest entry is the one that the rule names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from mgran_fast.kernels import tables, tune

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def entry(capability: int, channels: int, cells: int, block_cells: int) -> dict[str, object]:
    tile = {"block_cells": block_cells, "block_channels": 128, "num_warps": 4, "num_stages": 2}
    case = {"kernel": "forward", "mode": "mean", "bytes": 2, "capability": capability}
    return {**case, "channels": channels, "cells": cells, **tile}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    file = tmp_path / "pooling.json"
    found = [entry(80, 2048, 128, 1), entry(80, 256, 128, 2), entry(80, 2048, 32, 4), entry(90, 512, 512, 8)]
    file.write_text(json.dumps({"entries": found}))
    monkeypatch.setattr(tables, "TABLE", file)
    tables.entries.cache_clear()
    tables.choose.cache_clear()
    yield
    tables.entries.cache_clear()
    tables.choose.cache_clear()


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("channels", "cells", "capability", "want"),
    [
        (2048, 128, 80, 1),
        (1024, 128, 80, 1),
        (512, 128, 80, 2),
        (2048, 60, 80, 4),
        (2048, 64, 80, 1),  # as near to both, the first wins
        (2048, 128, 89, 1),
        (2048, 128, 90, 8),  # the device's generation goes before the size
        (2048, 128, 120, 8),
        (2048, 128, 75, 1),  # older than all: the oldest
        (2048, 128, 0, 1),
    ],
)
def test_nearest(channels: int, cells: int, capability: int, want: int) -> None:
    blocks = tables.choose("forward", "mean", torch.bfloat16, channels, cells, capability)
    assert blocks == tables.Blocks(cells=want, channels=128, num_warps=4, num_stages=2)


@pytest.mark.usefixtures("table")
def test_a_tile_is_cut_to_the_call() -> None:
    assert tables.choose("forward", "mean", torch.float16, 70, 3, 90) == tables.Blocks(4, 128, 4, 2)
    assert tables.choose("forward", "mean", torch.float16, 20, 1, 90) == tables.Blocks(1, 32, 4, 2)


@pytest.mark.usefixtures("table")
def test_no_entry_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"pooling.json has no entry for forward, mean, torch.float32"):
        tables.choose("forward", "mean", torch.float32, 70, 3, 90)


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("mode", ["mean", "max", "gem"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_shipped_table_serves_every_call(kernel: str, mode: str, dtype: torch.dtype) -> None:
    for channels, cells, capability in ((2048, 128, 90), (1, 1, 75), (70, 56 * 56, 120), (64, 3, 0)):
        blocks = tables.choose(kernel, mode, dtype, channels, cells, capability)
        for size in (blocks.cells, blocks.channels, blocks.num_warps):
            assert size >= 1
            assert size & (size - 1) == 0


def test_the_shipped_table_says_how_it_was_made() -> None:
    assert "not yet been tuned on a GPU" in json.loads(tables.TABLE.read_text())["about"]
    cases = [tuple(e[key] for key in list(e)[:6]) for e in tables.entries()]
    assert len(cases) == len(set(cases))


def test_a_tile_of_the_map_covers_16_pixels_a_thread() -> None:
    assert tables.share_blocks(16, 8, 256, 128) == tables.ShareBlocks(cells=8, y=16, x=128, num_warps=4)
    assert tables.share_blocks(1, 1, 7, 3) == tables.ShareBlocks(cells=1, y=8, x=16, num_warps=1)


def test_a_measured_entry_replaces_its_case_alone() -> None:
    old = [entry(80, 2048, 128, 1), entry(80, 256, 128, 2)]
    new = [entry(80, 256, 128, 4), entry(90, 256, 128, 8)]
    assert tune.merge(old, new) == [old[0], new[0], new[1]]


def test_tiles_to_try_are_tiles() -> None:
    assert len(set(tune.TILES)) == len(tune.TILES) > 20
    # Features of a thread: from one load of 16 bytes to what still fits the registers.
    assert all(4 <= tile.cells * tile.channels / (32 * tile.num_warps) <= 64 for tile in tune.TILES)


def test_products_take_the_nearest_case() -> None:
    """The shipped table: a case as it was measured, and the tile of another GPU's time serves that GPU alone."""
    measured = [e for e in tables.products() if "measured" in e]
    assert len(measured) >= 48
    for entry in measured:
        sizes = tuple(entry[key] for key in ("rows", "channels", "outs", "residual", "shortcut"))
        assert tables.product(*sizes, entry["capability"]) is entry
        tile = tables.pointwise(*sizes, entry["capability"])
        assert (tile.rows, tile.outs, tile.channels) == tuple(
            entry[f"block_{name}"] for name in ("rows", "outs", "channels")
        )
        assert entry["microseconds"] > 0
        assert entry["library"] > 0
        for other in (100, 120):
            assert tables.pointwise(*sizes, other) == tables.Tile(128, 64, 32, 4, 3)
    assert tables.pointwise(1000, 100, 100, False, False, 86) == tables.Tile(128, 64, 32, 4, 3)
    assert tables.pointwise(1000, 100, 100, False, False, 0) == tables.Tile(64, 64, 32, 4, 2)
    near = tables.product(60000, 64, 256, True, False, 90)
    assert (near["rows"], near["outs"], near["residual"]) == (65536, 256, True)


def test_tiles_of_products_fit_every_gpu() -> None:
    """Of shared memory the smallest GPUs give a block 99 KB; operands of all stages lie in it."""
    assert len(set(tune.PRODUCT_TILES)) == len(tune.PRODUCT_TILES)
    for tile in tune.PRODUCT_TILES:
        assert 2 * tile.num_stages * tile.channels * (tile.rows + tile.outs) <= 99 << 10
    assert len(tune.PRODUCTS) == 16


def norm_entry(capability: int, channels: int, block_rows: int, **more: object) -> dict[str, object]:
    case = {"kernel": "reduce", "bytes": 2, "capability": capability, "channels": channels, "rows": 1024}
    tile = {"block_rows": block_rows, "block_channels": 128, "num_warps": 4, "num_stages": 3, "programs": 64}
    return {**case, **tile, **more}


@pytest.fixture
def norm_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    file = tmp_path / "batchnorm.json"
    found = [norm_entry(75, 2048, 1), norm_entry(75, 64, 2), norm_entry(90, 64, 4, measured="a GPU")]
    file.write_text(json.dumps({"entries": found}))
    monkeypatch.setattr(tables, "BATCHNORM", file)
    tables.norms.cache_clear()
    tables.batchnorm.cache_clear()
    yield
    tables.norms.cache_clear()
    tables.batchnorm.cache_clear()


@pytest.mark.usefixtures("norm_table")
@pytest.mark.parametrize(
    ("channels", "capability", "want"),
    [(2048, 80, 1), (128, 80, 2), (128, 90, 4), (2048, 90, 4), (128, 100, 2), (2048, 0, 1)],
)
def test_a_norm_takes_the_nearest_case_but_no_other_gpus_time(channels: int, capability: int, want: int) -> None:
    blocks = tables.batchnorm("reduce", torch.bfloat16, channels, 1024, capability)
    assert blocks == tables.RowBlocks(want, 128, 4, 3, 64)
    with pytest.raises(ValueError, match=r"batchnorm.json has no entry for reduce, torch.float32"):
        tables.batchnorm("reduce", torch.float32, channels, 1024, capability)


def test_a_norms_tile_is_as_long_as_it_is_narrow() -> None:
    tile = tables.RowBlocks(8, 128, 4, 3, 64)
    assert tables.narrow(tile, 2048, 10**6) == tile
    assert tables.narrow(tile, 48, 10**6) == tables.RowBlocks(16, 64, 4, 3, 64)
    assert tables.narrow(tile, 1, 10**6) == tables.RowBlocks(256, 1, 4, 3, 64)
    assert tables.narrow(tile, 3, 5) == tables.RowBlocks(8, 4, 4, 3, 64)


@pytest.mark.parametrize("kernel", ["moments", "apply", "reduce", "grad"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_shipped_table_of_norms_serves_every_call(kernel: str, dtype: torch.dtype) -> None:
    for channels, rows, capability in ((2048, 4096, 90), (1, 1, 75), (70, 10**7, 120), (64, 262144, 0)):
        blocks = tables.batchnorm(kernel, dtype, channels, rows, capability)
        # More than one program shares a sum, and none what is no sum.
        assert (blocks.programs > 1) == (kernel in ("moments", "reduce"))
        for size in (blocks.rows, blocks.channels, blocks.num_warps):
            assert size >= 1
            assert size & (size - 1) == 0
    assert "not yet been tuned on a GPU" in json.loads(tables.BATCHNORM.read_text())["about"]


def test_tiles_of_norms_to_try_are_tiles() -> None:
    assert len(set(tune.NORM_TILES)) == len(tune.NORM_TILES) > 20
    # 16 bytes a thread are 4 or 8 numbers; each costs a sum two registers.
    assert all(4 <= tile.rows * tile.channels / (32 * tile.num_warps) <= 16 for tile in tune.NORM_TILES)
    assert json.loads(tune.words(tables.RowBlocks(8, 128, 4))) == {
        "block_rows": 8,
        "block_channels": 128,
        "num_warps": 4,
        "num_stages": 1,
    }
    assert json.loads(tune.words(tables.RowBlocks(8, 128, 4, 3, 64)))["programs"] == 64
