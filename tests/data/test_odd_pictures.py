"""Pictures of every odd kind: each gives the right answer or one clear error, and the rest goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mgran_fast.data import BadPicture, CropDataset, Record, RegionCache, Sample, read_picture
from mgran_fast.data.precompute import Built, build
from mgran_fast.data.provenance import provenance
from mgran_fast.errors import DataError
from mgran_fast.mra import Estimate
from mgran_fast.mra.maskrcnn import MaskRCNN
from mgran_fast.mra.regionnet import RegionNet

SIZE = (64, 32)


class Bright(nn.Module):
    """The mask is where the crop is bright; the keypoints are on one line."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(1))

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        n, height, width = crops.shape[:3]
        line = torch.linspace(0.05, 0.95, 17)
        keypoints = torch.stack((line * width, line * height, torch.ones(17)), 1)
        return Estimate(crops.float().mean(3) / 255, keypoints.expand(n, -1, -1), torch.ones(n))


def half_bright(height: int, width: int) -> np.ndarray:
    """uint8 [H, W], 255 in the left half: resized to 32 columns, 16 of them are foreground."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2] = 255
    return pixels


def save(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def rgb(height: int = 64, width: int = 32) -> Image.Image:
    return Image.fromarray(half_bright(height, width)).convert("RGB")


def clear() -> Image.Image:
    """White everywhere, the right half transparent."""
    pixels = np.full((64, 32, 4), 255, np.uint8)
    pixels[:, 16:, 3] = 0
    return Image.fromarray(pixels)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down and mirrored, so the bright half is on the left when it is shown
    return save(Image.fromarray(255 - half_bright(64, 32)).convert("RGB"), exif=exif)


GOOD: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: save(rgb()),
    "rgb.jpg": lambda: save(rgb(), format="JPEG", quality=95),
    "grey.png": lambda: save(Image.fromarray(half_bright(64, 32))),
    "grey.jpg": lambda: save(Image.fromarray(half_bright(64, 32)), format="JPEG", quality=95),
    "rgba.png": lambda: save(clear()),
    "palette.png": lambda: save(rgb().convert("P")),
    "bits.png": lambda: save(Image.fromarray(half_bright(64, 32)).convert("1")),
    "sixteen.png": lambda: save(Image.fromarray(half_bright(64, 32).astype(np.uint16) * 257)),
    "cmyk.jpg": lambda: save(rgb().convert("CMYK"), format="JPEG", quality=95),
    "turned.png": turned,
    "huge.jpg": lambda: save(rgb(8000, 6000), format="JPEG", quality=60),
    "wide.png": lambda: save(rgb(10, 4000)),
    "thin.png": lambda: save(rgb(1, 2)),
    "wrong-extension.png": lambda: save(rgb(), format="JPEG", quality=95),
    "name with spaces, ünïcode #1?%.png": lambda: save(rgb()),
}
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.jpg": (lambda: save(rgb(300, 200), format="JPEG")[:-900], "truncated"),
    "cut.png": (lambda: save(Image.effect_noise((90, 90), 80))[:-2000], "cannot be read"),
    "head.jpg": (lambda: save(rgb(), format="JPEG")[:30], "cannot be read"),
    "text.jpg": (lambda: b"this is no picture\n" * 9, "not a picture file"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "not a picture file"),
    "empty.png": (lambda: b"", "not a picture file"),
}


def run(root: Path) -> Built:
    paths = sorted(path for path in root.iterdir() if path.is_file())
    return build(
        paths, Bright(), provenance(Bright(), size=SIZE), root / "regions" / "pictures.sqlite",
        root=root, batch_size=5, workers=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    root = tmp_path_factory.mktemp("odd")
    for name, make in GOOD.items():
        (root / name).write_bytes(make())
    for name, (make, _) in BAD.items():
        (root / name).write_bytes(make())
    # One pixel: white, so the whole crop is the person.
    Image.fromarray(np.full((1, 1, 3), 255, np.uint8)).save(root / "pixel.png")
    return root, run(root)


def test_each_is_an_answer_or_one_line(odd: tuple[Path, Built]) -> None:
    root, built = odd
    assert built.pictures == built.computed == len(GOOD) + len(BAD) + 1
    told = dict(line.removeprefix(f"{root}/").split(": ", 1) for line in built.problems)
    assert told.keys() == BAD.keys()
    assert all("\n" not in line for line in built.problems)
    assert RegionCache(root / "regions").counts()["unreadable pictures"] == len(BAD)


@pytest.mark.parametrize("name", GOOD)
def test_right_answers(odd: tuple[Path, Built], name: str) -> None:
    root, _ = odd
    entry = RegionCache(root / "regions").entry(root / name)
    foreground = entry.region_map > 0
    assert foreground.shape == SIZE
    # Lossy formats and strong resizing blur the border between the halves by a column or two, thin pictures wholly.
    slack = 8 if name == "thin.png" else 2
    assert foreground[:, : 16 - slack].all()
    assert not foreground[:, 16 + slack :].any()
    assert np.abs(entry.keypoints[:, 0] - np.linspace(0.05, 0.95, 17) * 32).max() <= 64 * 2 / 32767 + 1e-5


def test_one_pixel(odd: tuple[Path, Built]) -> None:
    root, _ = odd
    assert (RegionCache(root / "regions").entry(root / "pixel.png").region_map > 0).all()


@pytest.mark.parametrize("name", BAD)
def test_clear_errors(odd: tuple[Path, Built], name: str) -> None:
    root, built = odd
    with pytest.raises(DataError, match=BAD[name][1]) as caught:
        RegionCache(root / "regions").entry(root / name)
    message = str(caught.value)
    assert message.startswith(f"{root / name}: ")
    assert message.count(name) == 1
    assert message in built.problems


def test_training_reads_the_good_and_tells_the_bad(odd: tuple[Path, Built]) -> None:
    root, _ = odd
    names = [*GOOD, *BAD]
    crops = CropDataset([Record(root / name, 1, 1) for name in names], masks=RegionCache(root / "regions"), size=SIZE)
    for i, name in enumerate(names):
        found = crops[i]
        assert isinstance(found, Sample if name in GOOD else BadPicture), name
        if isinstance(found, BadPicture):
            assert found.message.count(name) == 1


def test_a_repaired_picture_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(save(rgb()))
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "gone.jpg")
    built = build(
        [tmp_path / name for name in ("a.png", "b.jpg", "c.jpg")], Bright(), provenance(Bright(), size=SIZE),
        tmp_path / "regions" / "pictures.sqlite", root=tmp_path,
    )  # fmt: skip
    assert [line.split(": ", 1)[1] for line in built.problems] == [
        "the picture cannot be read (not a picture file, or an empty one); replace the file or remove it",
        "no such picture; check the path",
    ]
    (tmp_path / "b.jpg").write_bytes(save(rgb(), format="JPEG"))
    (tmp_path / "c.jpg").unlink()
    built = run(tmp_path)
    assert (built.pictures, built.kept, built.computed, built.removed, built.problems) == (2, 1, 1, 1, ())
    assert (RegionCache(tmp_path / "regions").entry(tmp_path / "b.jpg").region_map > 0).any()


@pytest.mark.parametrize("kind", [RegionNet, MaskRCNN])
def test_real_estimators(tmp_path: Path, kind: type[nn.Module]) -> None:
    """With random weights: the cache holds what a call in eval mode gives."""
    names = ("rgb.png", "cmyk.jpg", "wide.png")
    for name in names:
        (tmp_path / name).write_bytes(GOOD[name]())
    paths = [tmp_path / name for name in names]
    torch.manual_seed(0)
    estimator = kind().train()
    made = provenance(estimator, size=SIZE)  # type: ignore[arg-type]
    file = tmp_path / "regions" / "pictures.sqlite"
    built = build(sorted(paths), estimator, made, file, root=tmp_path)  # type: ignore[arg-type]
    assert (built.computed, built.problems) == (3, ())
    assert estimator.training
    crops = torch.stack([torch.from_numpy(read_picture(path, SIZE)) for path in sorted(paths)])
    with torch.inference_mode():
        want = estimator.eval()(crops)
    cache = RegionCache(file)
    assert cache.provenance["."].estimator == kind.__name__
    for i, path in enumerate(sorted(paths)):
        entry = cache.entry(path)
        assert np.array_equal(entry.region_map > 0, want.mask[i].numpy() >= 0.5)
        assert np.abs(entry.keypoints[:, :2] - want.keypoints[i, :, :2].numpy()).max() <= 0.5 * 256 / 32767 + 1e-5
        assert entry.presence == float(want.presence[i])
