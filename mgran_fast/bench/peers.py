"""What this library is compared with, each at its best, and what has to be installed for it.

A general engine runs the trunk over the 4N aligned inputs. Making the inputs, pooling and the head are this library's
for all of them. All get what they like best: batch norm folded, a static batch, the number of threads told,
channels_last where it matters.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgran_fast import ops
from mgran_fast.engine.program import program
from mgran_fast.engine.whole import Whole
from mgran_fast.ma import concatenate
from mgran_fast.model import MGRAN

Run = Callable[[], torch.Tensor]
Trunk = Callable[[torch.Tensor], torch.Tensor]

#: How a contestant's name begins -> the modules that it needs. All of them come with the extra "peers", but torchreid,
#: whose package from the registry is none that one installs beside others.
NEEDS = {
    "ONNX Runtime": ("onnx", "onnxscript", "onnxruntime"),
    "OpenVINO, int8": ("onnx", "onnxscript", "openvino", "nncf"),
    "OpenVINO": ("onnx", "onnxscript", "openvino"),
    "OpenCV": ("cv2",),
    "torchreid": ("torchreid",),
    "FAISS": ("faiss",),
}
#: What runs on the CPU alone.
CPU_ALONE = ("ONNX Runtime", "OpenVINO", "OpenCV", "NumPy", "FAISS", "torchreid", "oneDNN")


def missing(*modules: str) -> list[str]:
    """Those that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def why_not(contestant: str, device: str = "cpu") -> str:
    """Why a contestant cannot run here and what to do; empty when it can."""
    if device != "cpu" and contestant.startswith(CPU_ALONE):
        return "runs on the CPU alone"
    if (
        contestant.startswith("torch.compile")
        and device == "cpu"
        and shutil.which(os.environ.get("CXX", "c++")) is None
    ):
        return "there is no C++ compiler on the PATH"
    for name, modules in NEEDS.items():
        if contestant.startswith(name):
            gone = missing(*modules)
            if not gone:
                return ""
            how = "" if gone == ["torchreid"] else ": pip install 'mgran_fast[peers]'"
            return f"{', '.join(gone)} not installed{how}"
    return ""


def around(model: MGRAN, trunk: Trunk, dtype: torch.dtype, crops: torch.Tensor, region_map: torch.Tensor) -> Run:
    """The whole way from crops to embeddings with a trunk [4N, 3, H, W] -> [4N, D, h, w]."""
    region = torch.arange(1 + model.layout.regions, device=crops.device).repeat(len(crops))

    def run() -> torch.Tensor:
        with torch.no_grad():
            inputs = ops.inputs(crops, region_map, model.scale, model.mean, model.std, dtype=dtype)
            features = trunk(inputs.flatten(0, 1))
            pooled = ops.pooling(features, region_map, region, model.ma.pooling).unflatten(0, (len(crops), -1))
            visible = ops.visibility(region_map, model.layout)
            return concatenate(model.ma.neck(pooled, visible), visible)

    return run


def four_calls(model: MGRAN, crops: torch.Tensor, region_map: torch.Tensor) -> Run:
    """As the published system runs: one eager call of the trunk for each input, float32, standard layout."""
    trunk = plain(model, torch.float32, torch.contiguous_format)

    def four(inputs: torch.Tensor) -> torch.Tensor:
        each = inputs.unflatten(0, (len(crops), -1)).unbind(1)
        answers = [trunk(one.contiguous(memory_format=torch.contiguous_format)) for one in each]
        return torch.stack(answers, 1).flatten(0, 1)

    return around(model, four, torch.float32, crops, region_map)


def plain(model: MGRAN, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last) -> Any:
    """A copy of the trunk."""
    trunk = type(model.ma.trunk)(model.config["trunk"], last_stride=model.config["last_stride"]).eval()
    trunk.load_state_dict(model.ma.trunk.state_dict())
    return trunk.to(model.device, dtype).to(memory_format=layout)


def eager(model: MGRAN, dtype: torch.dtype) -> Trunk:
    trunk: Trunk = plain(model, dtype)
    return trunk


def onednn(model: MGRAN, dtype: torch.dtype) -> Trunk:
    """Folded, with bias, residual and ReLU fused: oneDNN's convolutions, called one by one."""
    return Whole(program(model.ma.trunk), dtype, torch.device("cpu"), scale=model.scale, mean=model.mean, std=model.std)


def compiled(model: MGRAN, dtype: torch.dtype) -> Trunk:
    """torch.compile with freezing: weights prepacked, batch norm folded; on a GPU with CUDA graphs as well."""
    options: dict[str, Any] = {"freezing": True}
    if model.device.type == "cuda":
        options["triton.cudagraphs"] = True
    # After several compilations of one function torch would give up, and run it eagerly.
    torch.compiler.reset()
    made: Trunk = torch.compile(plain(model, dtype), dynamic=False, options=options)
    return made


def export(model: MGRAN, images: torch.Tensor, folder: Path) -> Path:
    """The trunk as an ONNX file with a static batch."""
    path = folder / f"trunk{len(images)}.onnx"
    if not path.exists():
        trunk = plain(model, torch.float32, torch.contiguous_format)
        with torch.no_grad():
            torch.onnx.export(trunk, (images.contiguous(),), path, dynamo=True, external_data=False, verbose=False)
    return path


def quantized(path: Path, samples: list[np.ndarray[Any, Any]]) -> Path:
    """ONNX Runtime's own static quantization: QDQ, per channel, calibrated on samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made = path.with_suffix(".int8.onnx")
    if made.exists():
        return made

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Any:
            sample = next(self.left, None)
            return None if sample is None else {_input_name(path): sample}

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(path, prepared)
    quantize_static(
        prepared, made, Samples(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return made


def _input_name(path: Path) -> str:
    import onnx

    name: str = onnx.load(path, load_external_data=False).graph.input[0].name
    return name


def onnx_runtime(path: Path, threads: int) -> Trunk:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: torch.Tensor) -> torch.Tensor:
        answer = session.run(None, {name: images.contiguous().numpy()})[0]
        return torch.from_numpy(answer)

    return run


def openvino(path: Path, threads: int, precision: str, samples: list[np.ndarray[Any, Any]] | None = None) -> Trunk:
    """``precision`` f32 or bf16; with samples quantized to int8 by NNCF, the rest in ``precision``."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(path)
    if samples is not None:
        import nncf

        network = nncf.quantize(network, nncf.Dataset(samples), subset_size=len(samples))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(network, "CPU", options).create_infer_request()

    def run(images: torch.Tensor) -> torch.Tensor:
        answer = request.infer([images.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(next(iter(answer.values())))

    return run


def detectors(size: int = 800) -> list[Any]:
    """torchvision's two stock detectors, masks and keypoints, random weights; crops are enlarged to ``size`` pixels.

    Each finds one person in each picture. Random weights would find nobody and skip a head, or, without a threshold,
    sort 90 classes: so every box is a person, of which suppression and the limit leave one.
    """
    from torchvision.models.detection import keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

    settings: dict[str, Any] = {"weights": None, "weights_backbone": None, "box_detections_per_img": 1}
    found = [build(**settings, min_size=size).eval() for build in (maskrcnn_resnet50_fpn, keypointrcnn_resnet50_fpn)]
    for detector in found:
        with torch.no_grad():
            detector.roi_heads.box_predictor.cls_score.bias[1] += 5
            assert len(detector([torch.zeros(3, 256, 128)])[0]["scores"]) == 1
    return found


def by_rows(
    distances: np.ndarray[Any, Any],
    query_ids: np.ndarray[Any, Any],
    gallery_ids: np.ndarray[Any, Any],
    query_cameras: np.ndarray[Any, Any],
    gallery_cameras: np.ndarray[Any, Any],
) -> float:
    """The mean average precision in NumPy, a query at a time, as toolkits do it: an argsort, a mask, and sums."""
    precisions = []
    for row, person, camera in zip(distances, query_ids, query_cameras, strict=True):
        order = np.argsort(row)
        ids = gallery_ids[order]
        kept = ~((ids == person) & (gallery_cameras[order] == camera))
        places = np.flatnonzero(ids[kept] == person) + 1
        if len(places):
            precisions.append((np.arange(1, len(places) + 1) / places).mean())
    return float(np.mean(precisions))


def ten_draws(distances: Any, query_ids: Any, gallery_ids: Any, query_cameras: Any, gallery_cameras: Any) -> float:
    """Rank-1 of a single gallery shot as toolkits do it: ten draws of a picture of each person, for each query."""
    generator = np.random.default_rng(0)
    found = []
    for row, person, camera in zip(distances, query_ids, query_cameras, strict=True):
        order = np.argsort(row)
        order = order[~((gallery_ids[order] == person) & (gallery_cameras[order] == camera))]
        ids = gallery_ids[order]
        places = [np.flatnonzero(ids == each) for each in np.unique(ids)]
        for _ in range(10):
            drawn = np.sort([generator.choice(own) for own in places])
            found.append(ids[drawn[0]] == person)
    return float(np.mean(found))


def first_k(query: np.ndarray[Any, Any], held: np.ndarray[Any, Any], squares: np.ndarray[Any, Any], k: int) -> Any:
    """Indices [Q, k] of the nearest in NumPy: squared distances, less what does not change the order; a partition."""
    far = squares - 2 * (query @ held.T)
    first = np.argpartition(far, k, axis=1)[:, :k]
    return np.take_along_axis(first, np.take_along_axis(far, first, axis=1).argsort(axis=1), axis=1)


def dense_rerank(
    query_query: np.ndarray[Any, Any],
    query_gallery: np.ndarray[Any, Any],
    gallery_gallery: np.ndarray[Any, Any],
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
) -> np.ndarray[Any, Any]:
    """Re-ranked distances [Q, G] in NumPy, with dense vectors as toolkits hold them; the formula is
    :mod:`mgran_fast.reference.rerank`'s."""
    q = len(query_gallery)
    squares = np.block([[query_query, query_gallery], [query_gallery.T, gallery_gallery]]) ** 2
    share = squares / squares.max(axis=1, keepdims=True)
    order = np.argsort(share, axis=1, kind="stable")
    n, half = len(share), round(k1 / 2)

    def reciprocal(i: int, k: int) -> np.ndarray[Any, Any]:
        near = order[i, : k + 1]
        mutual: np.ndarray[Any, Any] = near[(order[near, : k + 1] == i).any(axis=1)]
        return mutual

    vectors: np.ndarray[Any, Any] = np.zeros_like(share)
    for i in range(n):
        own = reciprocal(i, k1)
        more = [own]
        for candidate in own:
            theirs = reciprocal(candidate, half)
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                more.append(theirs)
        members = np.unique(np.concatenate(more))
        similar = np.exp(-share[i, members])
        vectors[i, members] = similar / similar.sum()
    if k2 > 1:
        vectors = np.stack([vectors[order[i, :k2]].mean(axis=0) for i in range(n)])
    jaccard = np.empty((q, n - q), share.dtype)
    for i in range(q):
        members = np.flatnonzero(vectors[i])
        shared = np.minimum(vectors[i, members], vectors[q:, members]).sum(axis=1)
        jaccard[i] = 1 - shared / (2 - shared)
    found: np.ndarray[Any, Any] = (1 - weight) * jaccard + weight * share[:q, q:]
    return found
