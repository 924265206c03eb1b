"""FeatureExtractor: the same embeddings as the model's, in whatever form pictures come."""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mgran_fast
from mgran_fast import MGRAN, DataError, FeatureExtractor, MGRANError, ops
from mgran_fast.data import video
from mgran_fast.data.pictures import read_picture
from mgran_fast.data.synthetic import write
from mgran_fast.metrics.embedding import ESTIMATED_SIZE

SIZE = (64, 32)


@pytest.fixture(scope="module")
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(size=SIZE, trunk="resnet18").eval()


@pytest.fixture(scope="module")
def extractor(model: MGRAN) -> FeatureExtractor:
    return FeatureExtractor(model, device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, without masks."""
    root = write(tmp_path_factory.mktemp("data"), people=(2, 4), cameras=2, views=2, size=SIZE).root
    return Path(shutil.copytree(root / "bounding_box_test", tmp_path_factory.mktemp("pictures") / "street"))


def near(found: torch.Tensor, want: torch.Tensor) -> None:
    assert found.shape == want.shape
    assert float((found - want).abs().max()) < 1e-4


def test_every_form_gives_what_the_model_gives(extractor: FeatureExtractor, model: MGRAN, folder: Path) -> None:
    paths = sorted(folder.glob("*.jpg"))
    arrays = [read_picture(path, ESTIMATED_SIZE) for path in paths]
    crops = torch.from_numpy(np.stack(arrays))
    with torch.no_grad():
        want = model(crops)
    assert extractor.dim == want.shape[1]
    near(extractor([str(path) for path in paths]), want)
    near(extractor(paths[3]), want[3:4])
    near(extractor(folder), want)
    near(extractor(arrays), want)
    near(extractor(arrays[2]), want[2:3])
    near(extractor(np.stack(arrays)), want)
    near(extractor(crops), want)
    near(extractor(crops[1]), want[1:2])
    floats = crops.permute(0, 3, 1, 2).float() / 255
    near(extractor(floats), want)
    near(extractor([floats[0], crops[1:3], arrays[3]]), want[:4])
    assert extractor(crops[:0]).shape == (0, model.dim)
    assert extractor([]).shape == (0, model.dim)


def test_torchreids_call(model: MGRAN, folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "model.safetensors")
    theirs = FeatureExtractor(
        model_name="mgran", model_path=str(tmp_path / "model.safetensors"), device="cpu", image_size=SIZE,
        pixel_mean=[0.485, 0.456, 0.406], pixel_std=[0.229, 0.224, 0.225], pixel_norm=True, verbose=False,
    )  # fmt: skip
    paths = [str(path) for path in sorted(folder.glob("*.jpg"))[:2]]
    features = theirs(paths)
    assert isinstance(features, torch.Tensor)
    near(features, FeatureExtractor(tmp_path / "model.safetensors", device="cpu")(paths))
    assert features.norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)


def test_people_in_a_frame(extractor: FeatureExtractor, model: MGRAN, folder: Path, tmp_path: Path) -> None:
    frame = np.full((120, 200, 3), 90, np.uint8)
    picture = read_picture(sorted(folder.glob("*.jpg"))[0])
    frame[20 : 20 + SIZE[0], 50 : 50 + SIZE[1]] = picture
    boxes = [[50, 20, 50 + SIZE[1], 20 + SIZE[0]], [-10, 90, 30, 130]]
    crops = ops.crops(torch.from_numpy(frame), torch.tensor(boxes).float(), ESTIMATED_SIZE)
    with torch.no_grad():
        want = model(crops)
    near(extractor(frame, boxes=boxes), want)
    near(extractor(torch.from_numpy(frame), boxes=torch.tensor(boxes)), want)
    Image.fromarray(frame).save(tmp_path / "frame.png")
    near(extractor(tmp_path / "frame.png", boxes=boxes), want)
    # More people than a batch holds.
    near(extractor(frame, boxes=boxes * 4), want.repeat(4, 1))
    assert extractor(frame, boxes=[]).shape == (0, model.dim)
    features = extractor.extract(frame, boxes=np.array(boxes))
    assert features.names == ("0", "1")
    assert features.visible.shape == (2, 4)


@pytest.fixture(scope="module")
def film(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of 96 x 64, without loss but for the colours' half resolution."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("film") / "walk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        for picture in sorted(folder.glob("*.jpg"))[:5]:
            frame = av.VideoFrame.from_ndarray(read_picture(picture, (96, 64)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_video(extractor: FeatureExtractor, film: Path) -> None:
    frames = [frame.pixels for frame in video.frames(film)]
    assert [frame.shape for frame in frames] == [(96, 64, 3)] * 5
    assert video.count_frames(film) == 5
    steps: list[tuple[int, int]] = []
    features = extractor.extract(film, progress=lambda done, total: steps.append((done, total)))
    assert features.names == tuple(f"{film}#{i}" for i in range(5))
    assert steps == [(3, 5), (5, 5)]
    near(features.vectors, extractor(frames))
    near(extractor([film, film]), features.vectors.repeat(2, 1))
    # People in its frames: two in the second, one in the last.
    boxes = {1: [[0, 0, 32, 64], [20, 10, 60, 90]], 4: np.array([[5, 5, 60, 90]])}
    people = extractor.extract(film, boxes=boxes)
    assert people.names == (f"{film}#1.0", f"{film}#1.1", f"{film}#4.0")
    want = [extractor(frames[i], boxes=of) for i, of in boxes.items()]
    near(people.vectors, torch.cat(want))

    def found(number: int, frame: np.ndarray[Any, Any]) -> list[list[int]]:
        assert np.array_equal(frame, frames[number])
        return [[0, 0, 64, 96]] if number == 2 else []

    assert extractor.extract(film, boxes=found).names == (f"{film}#2.0",)
    assert extractor.extract(film, boxes={}).vectors.shape == (0, extractor.dim)


def test_a_decoder_never_waits_for_the_interpreter(film: Path) -> None:
    """A thread of the decoder that logs to Python wants it, and closing, which has it, wants the thread."""
    av = video.import_av()
    av.logging.set_level(av.logging.ERROR)
    assert next(video.frames(film)).number == 0
    assert av.logging.get_level() is None


def test_a_video_that_lies_is_turned_as_players_do(film: Path, tmp_path: Path) -> None:
    # The matrix in the track's header says how a frame is to be shown: here a quarter turn.
    content, at = film.read_bytes(), film.read_bytes().index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", content[at : at + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
    (tmp_path / "turned.mp4").write_bytes(content[:at] + turned + content[at + 36 :])
    stored, shown = (next(video.frames(path)).pixels for path in (film, tmp_path / "turned.mp4"))
    # Clockwise, by the matrix (a, b, c, d) = (0, 1, -1, 0).
    assert np.array_equal(shown, np.rot90(stored, -1))


def test_masks_beside_pictures_are_no_pictures(extractor: FeatureExtractor, tmp_path: Path) -> None:
    data = write(tmp_path / "data", people=(2, 2), cameras=2, views=2, size=SIZE).root
    names = extractor.extract(data).names
    assert (data / "masks").is_dir()
    assert names == tuple(sorted(one.relative_to(data).as_posix() for one in data.rglob("*.jpg")))


def test_the_model_stays_in_its_mode(model: MGRAN) -> None:
    other = MGRAN(size=SIZE, trunk="resnet18").train()
    FeatureExtractor(other, device="cpu")
    assert other.training


def test_a_video_that_breaks_off(extractor: FeatureExtractor, film: Path, tmp_path: Path) -> None:
    content = film.read_bytes()
    # Pictures of noughts, and the index behind them as it was.
    at, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    (tmp_path / "broken.mp4").write_bytes(content[:at] + bytes(end - at) + content[end:])
    with pytest.raises(DataError, match=r"broken.mp4: frame \d+ cannot be decoded"):
        extractor(tmp_path / "broken.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4: not a video that can be read"):
        extractor(tmp_path / "text.mp4")


def test_without_pyav(extractor: FeatureExtractor, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MGRANError, match=r"pip install 'mgran_fast\[video\]'"):
        extractor(film)


def test_an_engine(extractor: FeatureExtractor, model: MGRAN, folder: Path, tmp_path: Path) -> None:
    want = extractor(folder)
    engine = mgran_fast.optimize(model, torch.bfloat16)
    engine.save(tmp_path / "engine.safetensors")
    given, read = FeatureExtractor(engine), FeatureExtractor(tmp_path / "engine.safetensors", device="cpu")
    assert read.engine.precision == "bfloat16"
    assert torch.equal(given(folder), read(folder))
    assert float(torch.cosine_similarity(read(folder), want).min()) > 0.99
    for options, words in (
        ({"model": engine, "precision": "float32"}, "the engine is bfloat16 on cpu: leave precision"),
        ({"model": tmp_path / "engine.safetensors", "precision": "float32"}, "an engine has its precision"),
    ):
        with pytest.raises(ValueError, match=words):
            FeatureExtractor(**options)
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="int8 takes crops to calibrate on"):
        FeatureExtractor(tmp_path / "model.safetensors", precision="int8")


def test_progress_is_a_bar_on_a_terminal_alone(
    extractor: FeatureExtractor, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extractor(folder, progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_folder_with_broken_pictures(extractor: FeatureExtractor, folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    names = sorted(path.name for path in copied.glob("*.jpg"))
    (copied / names[2]).write_bytes(b"no picture")
    (copied / "deep").mkdir()
    (copied / names[0]).rename(copied / "deep" / names[0])
    steps: list[tuple[int, int]] = []
    features = extractor.extract(copied, progress=lambda done, total: steps.append((done, total)))
    assert features.names == (*names[1:2], *names[3:], f"deep/{names[0]}")
    assert features.indices.tolist() == [0, *range(2, 8)]
    assert len(features) == len(features.vectors) == len(features.visible) == 7
    assert names[2] in features.problems[0]
    assert steps[-1] == (8, 8)
    near(features.vectors[-1:], extractor(folder / names[0]))
    with pytest.raises(DataError, match=names[2]):
        extractor(copied)
    # As a gallery.
    gallery = mgran_fast.Gallery()
    gallery.add(features.vectors, features.names, visible=features.visible)
    assert gallery.search(extractor(folder / names[0]), k=1).entries[0][0].name == f"deep/{names[0]}"


def test_what_is_no_picture(extractor: FeatureExtractor, model: MGRAN, folder: Path, tmp_path: Path) -> None:
    picture = np.zeros((8, 4, 3), np.uint8)
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (tmp_path / "none.jpg", {}, DataError, "no such file; give a picture"),
        (3, {}, TypeError, "int is no picture: give paths, uint8 arrays"),
        ([picture, str(folder)], {}, TypeError, "files, videos and arrays in one call"),
        (picture.astype(np.float32), {}, TypeError, r"must be uint8 \[H, W, 3\], not float32 \[8, 4, 3\]"),
        (picture[..., 0], {}, ValueError, r"uint8 crops must have the shape \[N, H, W, 3\]"),
        (torch.full((3, 8, 4), 2.0), {}, ValueError, r"float crops must be in \[0, 1\]"),
        (picture[None], {"boxes": [[0, 0, 1, 1]]}, ValueError, r"a frame with boxes must be uint8 \[H, W, 3\]"),
        ("frame.jpg", {"boxes": [[0, 0, 1, 1]]}, DataError, "frame.jpg: no such picture"),
        ([picture, picture], {"boxes": [[0, 0, 1, 1]]}, ValueError, "one frame or one video, not of 2"),
        (["a.mp4", "b.jpg"], {}, TypeError, "files, videos and arrays in one call"),
        ("none.mp4", {}, DataError, "none.mp4: no such file; give a video"),
        ("none.mp4", {"boxes": [[0, 0, 1, 1]]}, TypeError, "boxes of a video are a mapping from numbers of frames"),
        (picture, {"boxes": np.ones((2, 6))}, ValueError, r"boxes must be float \[N, 4\], .*, not \[2, 6\]"),
    ]
    for given, options, error, words in cases:
        with pytest.raises(error, match=words):
            extractor(given, **options)
    Image.new("RGB", (4, 8)).save(tmp_path / "fine.jpg")
    for options, words in (
        ({}, "give a model or the path of a checkpoint"),
        ({"model": model, "model_path": "x"}, "only one of them"),
        ({"model": model, "batch_size": 0}, "batch_size must be at least 1"),
        ({"model": model, "mra": lambda crops: None}, "a model has its own"),
        ({"model": model, "image_size": (256, 128)}, r"image_size is \(256, 128\), and the model was made for"),
    ):
        with pytest.raises(ValueError, match=words):
            FeatureExtractor(**options)
