"""The GPU's executor: its program on the CPU by the references, and the whole engine where there is a GPU."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest
import torch

from mgran_fast import MGRAN, CheckpointError, Engine, calibrate, optimize
from mgran_fast.engine import file
from mgran_fast.engine.engine import CHUNKS
from mgran_fast.engine.fused import Fused
from mgran_fast.engine.program import program
from mgran_fast.engine.whole import Whole

SIZE = (64, 32)
COSINES = {torch.float32: 0.9999, torch.bfloat16: 0.999, torch.float16: 0.9999}
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def made(shape: str = "full", trunk: str = "resnet50", **options: object) -> MGRAN:
    torch.manual_seed(3)
    model = MGRAN(
        shape=shape, trunk=trunk, size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), **options
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.normal_(module.bias, std=0.2)
    return model


def people(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The second person has no head, the third nothing at all."""
    g = torch.Generator().manual_seed(count)
    coarse = torch.rand((count, 3, 8, 4), generator=g) * 255
    crops = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)
    region_map = torch.zeros(count, *SIZE, dtype=torch.uint8)
    region_map[:, 6:14, 12:20], region_map[:, 14:34, 8:24], region_map[:, 34:62, 8:23] = 1, 2, 3
    region_map[1:2][region_map[1:2] == 1] = 0
    region_map[2:3] = 0
    return crops.contiguous(), region_map


# --- its program, by the references ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("first", "inputs"), [(0, 4), (2, 1)])
def test_its_program_on_the_cpu(trunk: str, first: int, inputs: int) -> None:
    model = made(trunk=trunk)
    crops, region_map = people(3)
    options = {"scale": model.scale, "mean": model.mean, "std": model.std}
    steps = program(model.ma.trunk)
    fused = Fused(steps, torch.bfloat16, torch.device("cpu"), **options)  # type: ignore[arg-type]
    exact = Whole(steps, torch.float32, torch.device("cpu"), **options)  # type: ignore[arg-type]
    with fused.features(crops, region_map, first, inputs) as got, exact.features(crops, region_map, first, inputs) as y:
        assert got.dtype == torch.bfloat16
        assert torch.cosine_similarity(got.float().flatten(1), y.flatten(1)).min() > 0.999
    # A ResNet-50 has 4 blocks with a convolution in their shortcut, 12 without, and 16 1x1 convolutions before them.
    assert len(fused._products) == (32 if trunk == "resnet50" else 0)


def test_float32_leaves_it_to_the_library() -> None:
    model = made(trunk="resnet18")
    fused = Fused(program(model.ma.trunk), torch.float32, torch.device("cpu"), scale=1.0, mean=(0,) * 3, std=(1,) * 3)
    assert not fused._products
    assert fused._stem is None


def test_a_file_of_a_gpus_engine_runs_on_the_cpu_too(tmp_path: Path) -> None:
    """Written as an engine of a GPU is; read for the CPU, and refused where it wants a GPU that there is not."""
    model = made(trunk="resnet18")
    crops, region_map = people(3)
    engine = optimize(model, torch.bfloat16, "cpu")
    want = engine(crops, region_map=region_map)
    engine.executor = Fused(
        program(model.ma.trunk), torch.bfloat16, torch.device("cpu"), scale=model.scale, mean=model.mean, std=model.std
    )
    engine.save(tmp_path / "engine.safetensors")
    again = Engine.from_file(tmp_path / "engine.safetensors", device="cpu")
    cosine = torch.cosine_similarity(again(crops, region_map=region_map), want)
    assert cosine.min() > 0.9999
    if not torch.cuda.is_available():
        with pytest.raises(CheckpointError, match="one of a GPU, and there is none"):
            Engine.from_file(tmp_path / "engine.safetensors")
    optimize(model, torch.bfloat16, "cpu").save(tmp_path / "cpu.safetensors")
    with pytest.raises(CheckpointError, match="one of the CPU"):
        Engine.from_file(tmp_path / "cpu.safetensors", device="cuda")
    state = engine.state()
    state["plain"]["executor"]["kind"] = "other"
    with pytest.raises(ValueError, match="no executor 'other'"):
        Engine.from_state(state)
    plain, tensors = file.pack(engine.executor)
    with pytest.raises(ValueError, match="float16 is for GPUs"):
        file.unpack(plain, tensors, torch.float16, "cpu")


# --- on a GPU --------------------------------------------------------------------------------------------------


class TestOnGPU:
    pytestmark = gpu

    @torch.no_grad()
    @pytest.mark.parametrize("shape", ["full", "crop", "single"])
    @pytest.mark.parametrize("dtype", COSINES)
    @pytest.mark.parametrize("graphs", [True, False])
    def test_equals_the_model(self, shape: str, dtype: torch.dtype, graphs: bool) -> None:
        model = made(shape)
        engine = optimize(model, dtype, "cuda", graphs=graphs)
        for count in (1, 3, 5):
            crops, region_map = people(count)
            got, want = engine.encode(crops.cuda(), region_map=region_map.cuda()), model.encode(
                crops, region_map=region_map
            )  # fmt: skip
            assert torch.equal(got.visible.cpu(), want.visible)
            assert torch.cosine_similarity(got.vector.cpu(), want.vector).min() >= COSINES[dtype]
            assert not got.embeddings[~got.visible].any()

    @torch.no_grad()
    def test_graphs_change_nothing(self) -> None:
        model = made()
        with_graphs, without = (optimize(model, torch.bfloat16, "cuda", graphs=graphs) for graphs in (True, False))
        for count in (8, 3, 8, 0, 1, CHUNKS["cuda"] + 2):
            crops, region_map = people(count)
            want = without(crops, region_map=region_map)
            got = with_graphs(crops, region_map=region_map)
            assert got.shape == want.shape == (count, model.dim)
            assert count == 0 or torch.cosine_similarity(got, want).min() > 0.9999

    @torch.no_grad()
    def test_results_are_the_callers_own(self) -> None:
        engine = optimize(made(trunk="resnet18"), torch.bfloat16, "cuda")
        crops, region_map = people(4)
        first = engine(crops, region_map=region_map)
        before = first.clone()
        engine(255 - crops, region_map=region_map)
        assert torch.equal(first, before)
        assert torch.equal(engine(crops, region_map=region_map), before)

    @torch.no_grad()
    def test_threads_and_streams(self) -> None:
        engine = optimize(made(trunk="resnet18"), torch.bfloat16, "cuda")
        batches = [people(count) for count in (1, 2, 3, 4, 5, 8)]
        want = [engine(crops, region_map=region_map) for crops, region_map in batches]
        torch.cuda.synchronize()
        wrong = []

        def run(i: int) -> None:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                crops, region_map = (part.cuda() for part in batches[i])
                for _ in range(20):
                    if not torch.equal(engine(crops, region_map=region_map), want[i]):
                        wrong.append(i)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    @torch.no_grad()
    def test_files_and_pickles(self, tmp_path: Path) -> None:
        engine = optimize(made(trunk="resnet18"), torch.float16, "cuda")
        crops, region_map = people(5)
        want = engine(crops, region_map=region_map)
        engine.save(tmp_path / "engine.safetensors")
        for other in (Engine.from_file(tmp_path / "engine.safetensors"), pickle.loads(pickle.dumps(engine))):
            assert other.device.type == "cuda"
            assert torch.equal(other(crops, region_map=region_map), want)

    @torch.no_grad()
    def test_masks_and_the_estimator(self) -> None:
        model = made(trunk="resnet18")
        engine = optimize(model, torch.float16, "cuda")
        crops, _ = people(3)
        masks = torch.zeros(3, *SIZE)
        masks[:, 4:62, 6:26] = 1.0
        got = engine(crops.cuda(), masks.cuda())
        assert torch.cosine_similarity(got.cpu(), model(crops, masks)).min() > 0.999
        assert engine(crops.cuda()).isfinite().all()

    def test_refuses(self) -> None:
        model = made(trunk="resnet18")
        calibration = calibrate(model, *people(2)[:1])
        with pytest.raises(ValueError, match="int8 is for the CPU"):
            optimize(model, "int8", "cuda", calibration=calibration)
