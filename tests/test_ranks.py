"""Sums and rows of all ranks: alone, and on processes that talk to each other over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgran_fast import ranks

SCRIPT = Path(__file__).with_name("ranks_process.py")


def test_alone_everything_is_itself() -> None:
    assert (ranks.world(), ranks.rank()) == (1, 0)
    x = torch.ones(2, 3, requires_grad=True)
    assert ranks.all_sum(x) is x
    assert ranks.gather(x) is x
    assert ranks.counts(5) == [5]
    assert ranks.exchange([1, 2]) == [[1, 2]]
    assert ranks.gather_objects("a") == ["a"]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_compute_what_one_process_does(world: int, tmp_path: Path) -> None:
    """Values, gradients through statistics and losses over all rows, unequal shares and one without any."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / "store"), str(rank), str(world)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(said)
