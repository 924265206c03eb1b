"""A small model and a folder of pictures that several parts are made of."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mgran_fast import MGRAN
from mgran_fast.data.synthetic import write
from mgran_fast.extraction import extract

SIZE = (64, 32)


@dataclass(frozen=True)
class World:
    """Pictures and checkpoints, not to be changed; and what one process makes of them."""

    pictures: Path
    checkpoint: Path
    regions: Path
    output: Path

    @staticmethod
    def parts(output: Path) -> dict[str, bytes]:
        """The content of all files that were written, by name; nothing that is unfinished among them."""
        assert not list(output.glob(".*"))
        return {path.name: path.read_bytes() for path in sorted(output.glob("*.parquet"))}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """108 pictures in two folders, 4 parts."""
    base = tmp_path_factory.mktemp("extraction")
    root = write(base / "data", people=(2, 12), cameras=3, views=3, size=SIZE).root
    pictures = base / "pictures"
    shutil.copytree(root / "bounding_box_test", pictures / "north")
    shutil.copytree(root / "query", pictures / "south")
    torch.manual_seed(0)
    # Whole crops, for speed; and one that wants masks.
    MGRAN(size=SIZE, trunk="resnet18", layout="none").save(base / "model.safetensors")
    MGRAN(size=SIZE, trunk="resnet18").save(base / "regions.safetensors")
    output = extract(pictures, base / "whole.parquet", base / "model.safetensors").output
    return World(pictures, base / "model.safetensors", base / "regions.safetensors", output)
