"""The MA engine against general engines in the same precision: from crops and region maps to embeddings.

ResNet-50, crops of 256x128, batches of 1 and 8 people, four inputs each. With MGRAN_DATA set, crops and maps are real
ones of its folder cuhk03. Weights are random, which no speed here depends on; what precision costs in accuracy is
measured with trained weights, see docs/results.md. Peers: pip install "mgran_fast[peers]"; who is missing is named.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mgran_fast import MGRAN, calibrate, ops, optimize
from mgran_fast.bench import paired, peers

SIZE = (256, 128)
BAR, FOUR = 1.15, {"bfloat16": 3.5, "int8": 7.0}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def say(text: str) -> None:
    """Shown with -s."""
    sys.stdout.write(text + "\n")


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a second: once to warm up, then seven times."""
    monkeypatch.setattr(paired, "WARM_UP", 1)
    monkeypatch.setattr(paired, "race", functools.partial(paired.race, least=7))


@functools.cache
def people() -> tuple[torch.Tensor, torch.Tensor, str]:
    """32 crops and region maps, and what they are."""
    root = os.environ.get("MGRAN_DATA")
    if root:
        from mgran_fast.data import CropDataset, read_market
        from mgran_fast.data.masks import MaskFiles

        folder = Path(root) / "cuhk03"
        records = read_market(folder).query[:96:3]
        samples = [CropDataset(records, masks=MaskFiles(folder), size=SIZE)[i] for i in range(len(records))]
        return torch.stack([s.crop for s in samples]), torch.stack([s.region_map for s in samples]), "real maps"
    from mgran_fast.data.synthetic import render

    views = [render(person, 0, 0, size=SIZE) for person in range(32)]
    crops, masks, keypoints = (
        torch.stack([torch.from_numpy(getattr(view, name)) for view in views]) for name in ("crop", "mask", "keypoints")
    )
    return crops, ops.regions(masks, keypoints, SIZE), "synthetic maps"


def model_of(shape: str = "full") -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(shape=shape).eval()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_engine(
    compare: Callable[..., None], few_rounds: None, tmp_path: Path, threads: int, precision: str, count: int
) -> None:
    crops, maps, kind = people()
    model = model_of()
    calibration = calibrate(model, crops[8:24], region_map=maps[8:24]) if precision == "int8" else None
    engine = optimize(model, precision, calibration=calibration)
    some, some_maps = crops[:count], maps[:count]
    around = functools.partial(peers.around, model, crops=some, region_map=some_maps)
    images = ops.inputs(some, some_maps).flatten(0, 1).contiguous()
    onnx = functools.partial(peers.export, model, images, tmp_path)
    samples = [
        ops.inputs(crops[i : i + count], maps[i : i + count]).flatten(0, 1).contiguous().numpy()
        for i in range(8, 24, count)
    ]
    f32 = torch.float32
    contestants: dict[str, Callable[[], torch.Tensor]] = {"ours": lambda: engine(some, region_map=some_maps)}
    contestants["four eager float32 calls"] = peers.four_calls(model, some, some_maps)
    if precision in DTYPES:
        dtype = DTYPES[precision]
        contestants["eager"] = around(peers.eager(model, dtype), dtype)
        contestants["oneDNN, folded and fused"] = around(peers.onednn(model, dtype), dtype)
        contestants["torch.compile, freezing"] = around(peers.compiled(model, dtype), dtype)
    gone = {name: peers.why_not(name) for name in ("ONNX Runtime", "OpenVINO", "OpenVINO, int8")}
    if precision == "float32" and not gone["ONNX Runtime"]:
        contestants["ONNX Runtime"] = around(peers.onnx_runtime(onnx(), threads), f32)
    if precision == "int8" and not gone["ONNX Runtime"]:
        contestants["ONNX Runtime"] = around(peers.onnx_runtime(peers.quantized(onnx(), samples), threads), f32)
    if precision in DTYPES and not gone["OpenVINO"]:
        hint = "f32" if precision == "float32" else "bf16"
        contestants["OpenVINO"] = around(peers.openvino(onnx(), threads, hint), f32)
    if precision == "int8" and not gone["OpenVINO, int8"]:
        contestants["OpenVINO"] = around(peers.openvino(onnx(), threads, "f32", samples), f32)
        contestants["OpenVINO, rest in bfloat16"] = around(peers.openvino(onnx(), threads, "bf16", samples), f32)
    for name, why in gone.items():
        if why:
            say(f"{name} is left out: {why}")
    want = model(some, region_map=some_maps)
    for name, run in contestants.items():
        cosine = torch.cosine_similarity(run(), want)
        assert cosine.min() > 0.98, f"{name} computes something else: cosine {cosine.min():.4f}"
    general = [name for name in contestants if name not in ("ours", "four eager float32 calls")]
    bars = {"|".join(general): BAR if count == 8 else 1.0}
    if count == 8 and precision in FOUR:
        bars["four eager float32 calls"] = FOUR[precision]
    work = engine.work(some, region_map=some_maps)
    compare(
        f"MA of {count} people, {precision}, {kind}, {100 * work.skipped:.0f} % of the multiply-adds skipped",
        contestants,
        bars=bars,
        count=count,
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_shapes(compare: Callable[..., None], few_rounds: None, precision: str) -> None:
    """The three shapes of the model, 8 people."""
    crops, maps, kind = people()
    contestants = {}
    for shape in ("full", "crop", "single"):
        model = model_of(shape)
        calibration = calibrate(model, crops[8:16], region_map=maps[8:16]) if precision == "int8" else None
        engine = optimize(model, precision, calibration=calibration)
        contestants["ours" if shape == "full" else shape] = functools.partial(engine, crops[:8], region_map=maps[:8])
    compare(f"MA of 8 people, {precision}, {kind}, the shapes full (ours), crop and single", contestants, count=8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_first_result(threads: int, precision: str) -> None:
    """Seconds from a model to the first embeddings of 8 people; torch.compile beside it."""
    crops, maps, _ = people()
    model = model_of()
    calibration = calibrate(model, crops[8:16], region_map=maps[8:16]) if precision == "int8" else None
    start = time.perf_counter()
    engine = optimize(model, precision, calibration=calibration)
    made = time.perf_counter() - start
    engine(crops[:8], region_map=maps[:8])
    first = time.perf_counter() - start
    say(f"\n{precision}, {threads} thread(s): optimize {made:.2f} s, with the first result {first:.2f} s")
    if precision in DTYPES:
        torch.compiler.reset()
        dtype = DTYPES[precision]
        start = time.perf_counter()
        peers.around(model, peers.compiled(model, dtype), dtype, crops[:8], maps[:8])()
        say(f"torch.compile with freezing: {time.perf_counter() - start:.1f} s")
    assert first < 3.0


_PEAK = """
import sys, torch
from mgran_fast import MGRAN, optimize, calibrate, Engine
kind, path, count = sys.argv[1], sys.argv[2], 8
crops, maps = torch.load(path)
torch.set_num_threads(2)
if kind == "eager":
    torch.manual_seed(0)
    engine = MGRAN().eval()
else:
    torch.manual_seed(0)
    model = MGRAN().eval()
    scales = None
    if kind == "int8":
        from mgran_fast import Calibration
        from mgran_fast.engine.program import program
        sizes = [4, *(layer[2] for layer in program(model.ma.trunk).layers((256, 128))[1:-1])]
        ones = tuple(torch.full((size,), 0.05) for size in sizes)
        scales = Calibration(ones, ones, torch.zeros(4, 2048), 1, {})
    engine = optimize(model, kind, calibration=scales)
with torch.no_grad():
    for _ in range(3):
        engine(crops[:count], region_map=maps[:count])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read from /proc")
def test_peak_memory(tmp_path: Path) -> None:
    """Of a process that embeds 8 people; the model that the engine was made from stays in memory."""
    crops, maps, _ = people()
    torch.save((crops, maps), tmp_path / "people.pt")
    peaks = {}
    for kind in ("eager", "float32", "bfloat16", "int8"):
        command = [sys.executable, "-c", _PEAK, kind, str(tmp_path / "people.pt")]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[kind] = int(answer.stdout) / 1024
    say("\npeak of memory, MB: " + ", ".join(f"{kind} {peak:.0f}" for kind, peak in peaks.items()))
    assert max(peaks["float32"], peaks["bfloat16"], peaks["int8"]) <= peaks["eager"]
