"""``optimize``: the engine answers as the model does, whatever it is given, and tells what it saves."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest
import torch

import mgran_fast
from mgran_fast import MGRAN, Calibration, CheckpointError, Engine, calibrate, optimize
from mgran_fast.engine.engine import CHUNKS
from mgran_fast.engine.program import program
from mgran_fast.engine.whole import Whole
from mgran_fast.engine.windowed import Windowed
from mgran_fast.mra.estimate import Estimate

SIZE = (64, 32)


def made(shape: str = "full", **options: object) -> MGRAN:
    torch.manual_seed(2)
    model = MGRAN(
        shape=shape, trunk="resnet18", size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), **options
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.4, 0.8)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.normal_(module.bias, std=0.2)
    torch.nn.init.normal_(model.ma.neck.running_mean, std=0.1)
    torch.nn.init.uniform_(model.ma.neck.running_var, 0.5, 2.0)
    return model


@pytest.fixture(scope="module")
def model() -> MGRAN:
    return made()


def people(count: int = 5, size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """People of smooth colours; the second has no head, the third nothing at all."""
    g = torch.Generator().manual_seed(count)
    h, w = size
    coarse = torch.rand((count, 3, 8, 4), generator=g) * 255
    crops = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)
    region_map = torch.zeros(count, h, w, dtype=torch.uint8)
    for person in range(count):
        left, right = w // 4 - person % 3, w - w // 4 + person % 2
        region_map[person, h // 8 : h // 4, w // 3 : w // 2] = 1
        region_map[person, h // 4 : h // 2, left:right] = 2
        region_map[person, h // 2 : h - person % 4, left:right] = 3
    region_map[1:2][region_map[1:2] == 1] = 0
    region_map[2:3] = 0
    return crops.contiguous(), region_map


# --- the same embeddings ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("shape", ["full", "crop", "single"])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.999)])
def test_equals_the_model(shape: str, dtype: torch.dtype, least: float) -> None:
    model = made(shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    engine = optimize(model, dtype)
    crops, region_map = people()
    got, want = engine.encode(crops, region_map=region_map), model.encode(crops, region_map=region_map)
    assert torch.equal(got.visible, want.visible)
    assert got.embeddings.dtype == torch.float32
    assert torch.cosine_similarity(got.vector, want.vector).min() >= least
    for i in range(4):
        seen = want.visible[:, i]
        assert torch.cosine_similarity(got.embeddings[seen, i], want.embeddings[seen, i]).min() >= least
    assert not got.embeddings[~want.visible].any()
    assert torch.equal(engine(crops, region_map=region_map), got.vector)
    assert engine.dim == model.dim
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["max", "gem"])
@pytest.mark.parametrize("layout", ["part", "box", "none"])
def test_other_layouts_and_poolings(pooling: str, layout: str) -> None:
    model = made(layout=layout, pooling=pooling)
    crops, _ = people()
    masks = torch.zeros(5, *SIZE)
    masks[:, 8:60, 6:20] = 1.0
    assert torch.allclose(optimize(model, torch.float32)(crops, masks), model(crops, masks), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, CHUNKS["cpu"], 2 * CHUNKS["cpu"] + 1])
def test_any_batch(model: MGRAN, count: int) -> None:
    crops, region_map = people(count)
    engine = optimize(model, torch.float32)
    got = engine(crops, region_map=region_map)
    assert got.shape == (count, model.dim)
    # Person by person: to the bit.
    alone = [engine(crops[i : i + 1], region_map=region_map[i : i + 1]) for i in range(min(count, 3))]
    assert all(torch.equal(one[0], got[i]) for i, one in enumerate(alone))
    if count:
        assert torch.allclose(got, model(crops, region_map=region_map), atol=1e-4)


@torch.no_grad()
def test_whole_images_give_the_same_to_the_bit(model: MGRAN) -> None:
    crops, region_map = people()
    some, every = optimize(model, torch.float32), optimize(model, torch.float32, windows=False)
    assert torch.equal(some(crops, region_map=region_map), every(crops, region_map=region_map))
    work = some.work(crops, region_map=region_map)
    assert 0.2 < work.skipped < 0.9
    assert every.work(crops, region_map=region_map) == (work.dense, work.dense)
    assert work.dense >= program(model.ma.trunk).multiply_adds(SIZE) * 20


@torch.no_grad()
def test_masks_keypoints_other_sizes_and_the_estimator(model: MGRAN) -> None:
    engine = optimize(model, torch.float32)
    crops, _ = people(3, (40, 20))
    masks = torch.zeros(3, 40, 20)
    masks[:, 5:38, 4:15] = 1.0
    keypoints = torch.rand(3, 17, 3) * torch.tensor([20.0, 40.0, 1.0])
    assert torch.allclose(engine(crops, masks, keypoints), model(crops, masks, keypoints), atol=1e-4)
    floats = crops.permute(0, 3, 1, 2) / 255
    assert torch.allclose(engine(floats, masks, keypoints), model(floats, masks, keypoints), atol=1e-4)

    class Given:
        def __call__(self, crops: torch.Tensor) -> Estimate:
            return Estimate(masks[: len(crops)], keypoints[: len(crops)], torch.ones(len(crops)))

    own = made(mra=Given())
    assert torch.allclose(optimize(own, torch.float32)(crops), own(crops), atol=1e-4)


@torch.no_grad()
def test_threads_share_an_engine(model: MGRAN) -> None:
    engine = optimize(model, torch.bfloat16)
    batches = [people(count) for count in (1, 2, 3, 4)]
    want = [engine(crops, region_map=region_map) for crops, region_map in batches]
    wrong = []

    def run(i: int) -> None:
        crops, region_map = batches[i]
        for _ in range(8):
            if not torch.equal(engine(crops, region_map=region_map), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_reference(model: MGRAN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    crops, region_map = people(3)
    engine = optimize(model, torch.float32)
    assert torch.allclose(engine(crops, region_map=region_map), model(crops, region_map=region_map), atol=1e-4)
    assert engine.work(crops, region_map=region_map).skipped == 0


@torch.no_grad()
def test_whole_is_the_same_program(model: MGRAN) -> None:
    crops, region_map = people()
    whole = Whole(
        program(model.ma.trunk), torch.float32, torch.device("cpu"), scale=model.scale, mean=model.mean, std=model.std
    )
    windowed = optimize(model, torch.float32, windows=False).executor
    assert isinstance(windowed, Windowed)
    for first, inputs in ((0, 4), (2, 1)):
        with (
            whole.features(crops, region_map, first, inputs) as want,
            windowed.features(crops, region_map, first, inputs) as got,
        ):
            assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert whole.work(region_map, 0, 4).skipped == 0


# --- int8 ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("shape", ["full", "crop", "single"])
def test_int8(shape: str) -> None:
    model = made(shape)
    crops, region_map = people(8)
    calibration = calibrate(model, crops, region_map=region_map)
    assert set(calibration.cosines) == {"global", "head", "upper body", "lower body", "all"}
    mean, least = calibration.cosines["all"]
    assert 0.97 < least <= mean < 1.0
    assert "8 crops" in str(calibration)
    engine = optimize(model, "int8", calibration=calibration)
    other, other_map = people(6)
    cosine = torch.cosine_similarity(engine(other, region_map=other_map), model(other, region_map=other_map))
    assert cosine.min() > 0.95
    assert engine.calibration is calibration
    # To the bit in any window, as the floats.
    dense = optimize(model, torch.int8, calibration=calibration, windows=False)
    assert torch.equal(dense(other, region_map=other_map), engine(other, region_map=other_map))


def test_what_int8_costs_is_measured() -> None:
    model = made()
    crops, region_map = people(4)
    good = calibrate(model, crops, region_map=region_map)
    want = model(crops, region_map=region_map)
    coarse = (good.scales[0], *(64 * scale for scale in good.scales[1:]))
    engine = optimize(model, "int8", calibration=Calibration(coarse, good.means, good.shift, 4, {}))
    cosine = torch.cosine_similarity(engine(crops, region_map=region_map), want)
    again = optimize(model, "int8", calibration=good)(crops, region_map=region_map)
    assert cosine.mean() < torch.cosine_similarity(again, want).mean() - 0.003


# --- files and pickles -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "int8"])
def test_files_and_pickles(model: MGRAN, dtype: torch.dtype | str, tmp_path: Path) -> None:
    crops, region_map = people()
    calibration = calibrate(model, crops, region_map=region_map) if dtype == "int8" else None
    engine = optimize(model, dtype, calibration=calibration)
    want = engine(crops, region_map=region_map)
    engine.save(tmp_path / "deep" / "engine.safetensors")
    again = Engine.from_file(tmp_path / "deep" / "engine.safetensors")
    pickled = pickle.loads(pickle.dumps(engine))
    for other in (again, pickled):
        assert torch.equal(other(crops, region_map=region_map), want)
        assert (other.calibration is None) == (calibration is None)
        if calibration is not None:
            assert str(other.calibration) == str(calibration)
        assert repr(other) == repr(engine)
    assert list(tmp_path.glob("deep/.*")) == []


def test_damaged_files(model: MGRAN, tmp_path: Path) -> None:
    path = tmp_path / "engine.safetensors"
    with pytest.raises(CheckpointError, match="no such engine"):
        Engine.from_file(path)
    model.save(path)
    with pytest.raises(CheckpointError, match="no engine: its format"):
        Engine.from_file(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Engine.from_file(path)
    engine = optimize(model, torch.float32)
    state = engine.state()
    broken = {**state, "tensors": {k: v for k, v in state["tensors"].items() if k != "steps.3.bias"}}
    with pytest.raises(KeyError):
        Engine.from_state(broken)
    steps = state["plain"]["executor"]["steps"]
    step = next(i for i, s in enumerate(steps) if s.get("layers") == [2])
    steps[step]["layers"] = [40]
    with pytest.raises(ValueError, match="reads layer 40"):
        Engine.from_state(state)


# --- what is refused -------------------------------------------------------------------------------------------


def test_optimize_refuses(model: MGRAN) -> None:
    with pytest.raises(TypeError, match="wants an MGRAN, not ResNet"):
        optimize(type("ResNet", (torch.nn.Module,), {})())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, int8"):
        optimize(model, torch.float64)
    with pytest.raises(ValueError, match="needs a calibration"):
        optimize(model, "int8")
    with pytest.raises(ValueError, match="a calibration is for int8"):
        optimize(model, torch.float32, calibration=Calibration((), (), torch.zeros(4, 512), 1, {}))
    with pytest.raises(ValueError, match="float16 is for GPUs"):
        optimize(model, torch.float16)
    other = calibrate(made(last_stride=2), *people(2)[:1])
    with pytest.raises(ValueError, match="of another trunk"):
        optimize(model, "int8", calibration=Calibration(other.scales[1:], other.means, other.shift, 2, {}))
    with pytest.raises(ValueError, match="there are none"):
        calibrate(model, torch.zeros((0, 64, 32, 3), dtype=torch.uint8))


def test_weights_that_are_not_finite() -> None:
    model = made()
    with torch.no_grad():
        model.ma.trunk.layer3[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        optimize(model, torch.float32)


@pytest.mark.parametrize(
    ("crops", "region_map", "error", "words"),
    [
        (torch.zeros(2, 64, 32, 4, dtype=torch.uint8), None, ValueError, "N, H, W, 3"),
        (torch.zeros(2, 64, 32, 3, dtype=torch.int32), None, TypeError, "uint8"),
        (torch.full((1, 3, 64, 32), torch.nan), None, ValueError, r"in \[0, 1\]"),
        (torch.zeros(1, 0, 32, 3, dtype=torch.uint8), None, ValueError, "no pixels"),
        (torch.zeros(2, 64, 32, 3).byte(), torch.zeros(3, 64, 32).byte(), ValueError, "region_map"),
        (torch.zeros(2, 64, 32, 3).byte(), torch.zeros(2, 64, 32), TypeError, "region_map"),
    ],
)  # fmt: skip
def test_bad_input(
    model: MGRAN, crops: torch.Tensor, region_map: torch.Tensor | None, error: type[Exception], words: str
) -> None:
    engine = optimize(model, torch.bfloat16)
    with pytest.raises(error, match=words):
        engine(crops, region_map=region_map)


def test_nobody(model: MGRAN) -> None:
    """A person whose mask is empty counts as a whole, as in the model."""
    crops, _ = people(2)
    engine = optimize(model, torch.float32)
    encoding = engine.encode(crops, torch.zeros(2, *SIZE))
    assert encoding.visible.tolist() == [[True, False, False, False]] * 2
    assert torch.allclose(encoding.vector, model(crops, torch.zeros(2, *SIZE)), atol=1e-4)
    assert mgran_fast.optimize is optimize
