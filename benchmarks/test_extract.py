"""mgran-fast extract on a folder of JPEG crops, against its engine on the same crops in memory.

    python -m pytest -s benchmarks/test_extract.py

A ResNet-50 at 256x128, RegionNet finds the masks on both sides; extract also lists, reads, decodes and resizes the
pictures, makes the engine anew, and writes Parquet. Real crops where MGRAN_DATA names them, else drawn ones.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mgran_fast
from mgran_fast import MGRAN
from mgran_fast.data.pictures import read_picture
from mgran_fast.data.synthetic import render
from mgran_fast.extraction import extract
from mgran_fast.search.pictures import find_pictures

PEOPLE, BATCH = 128, 32


def pictures(folder: Path) -> Path:
    """JPEG files, as many as people."""
    folder.mkdir()
    root = os.environ.get("MGRAN_DATA")
    if root:
        found = [one.path for one in find_pictures(Path(root) / "cuhk03", timed=False)[1]]
        crops = [read_picture(path) for path in found[:: len(found) // PEOPLE][:PEOPLE]]
    else:
        crops = [np.asarray(render(i // 8, i % 4, i % 8, size=(256, 128)).crop) for i in range(PEOPLE)]
    for i, crop in enumerate(crops):
        Image.fromarray(crop).save(folder / f"{i:04}.jpg", quality=95)
    return folder


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_extract(precision: str, compare: Callable[..., None], threads: int, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    torch.manual_seed(0)
    model = MGRAN().eval()
    crops = torch.from_numpy(np.stack([read_picture(path, model.size) for path in sorted(folder.iterdir())]))
    calibration = mgran_fast.calibrate(model, crops[:8]) if precision == "int8" else None
    engine = mgran_fast.optimize(model, precision, calibration=calibration)
    engine.save(tmp_path / "engine.safetensors")
    numbers = itertools.count()

    def ours() -> object:
        output = tmp_path / f"{next(numbers)}.parquet"
        found = extract(folder, output, tmp_path / "engine.safetensors", batch_size=BATCH, threads=threads, processes=1)
        assert found.made == PEOPLE
        return found

    def alone() -> object:
        return [engine(crops[i : i + BATCH]) for i in range(0, PEOPLE, BATCH)]

    compare(
        f"extract, {precision}", {"ours": ours, "the engine alone": alone}, {"the engine alone": 0.85},
        count=PEOPLE, rounds=3,
    )  # fmt: skip
