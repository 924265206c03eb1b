"""What a region cache was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mgran_fast.data import MaskFiles
from mgran_fast.data.provenance import Provenance, identity, provenance


class Looker(nn.Module):
    """Stands for an estimator."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))


def test_identity() -> None:
    name, sha256, arguments = identity(Looker())
    assert (name, len(sha256), arguments) == ("Looker", 64, {})
    assert identity(Looker())[1] == sha256
    assert identity(Looker(1.5))[1] != sha256
    one, other = nn.Module(), nn.Module()
    one.register_buffer("a", torch.tensor([1.0, 2.0]))
    other.register_buffer("a", torch.tensor([[1.0, 2.0]]))
    assert identity(one)[1] != identity(other)[1]
    half = nn.Module()
    half.register_buffer("a", torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    half.register_buffer("empty", torch.zeros(0))
    assert len(identity(half)[1]) == 64
    one.arguments = {"flip": True, "size": (2, 1)}  # type: ignore[assignment]
    assert provenance(one).options == {"flip": True, "size": [2, 1]}
    # The same weights, decoded in another way.
    one.REVISION = 2  # type: ignore[assignment]
    assert provenance(one).options == {"flip": True, "size": [2, 1], "revision": 2}
    with pytest.raises(TypeError, match="state_dict"):
        identity(lambda crops: crops)  # type: ignore[arg-type]


def test_masks_in_a_folder_that_is_a_link_count(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "masks").mkdir(parents=True)
    (tmp_path / "data" / "masks" / "query").symlink_to(tmp_path / "elsewhere")
    before = identity(MaskFiles(tmp_path / "data"))[1]
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"a mask")
    assert identity(MaskFiles(tmp_path / "data"))[1] != before


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"layout": "box"}, "cannot be cached"),
        ({"layout": "none"}, "cannot be cached"),
        ({"layout": "legs"}, "layout must be one of"),
        ({"size": (0, 4)}, "size"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"keypoint_threshold": -1}, "keypoint_threshold"),
    ],
)
def test_bad_settings(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        provenance(Looker(), **values)


def test_it_comes_back_and_tells_differences() -> None:
    made = provenance(Looker(), size=(64, 32), options={"flip": True})
    assert Provenance.from_json(made.to_json()) == made
    assert made.differences(made) == []
    other = provenance(Looker(), size=(64, 32), threshold=0.25, options={"flip": False})
    assert made.differences(other) == ["options {'flip': True}, not {'flip': False}", "threshold 0.5, not 0.25"]
    with pytest.raises((TypeError, KeyError)):
        Provenance.from_json("{}")
