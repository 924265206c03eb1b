"""What the engine is compared with: general engines, each at its best, around our own front and end.

A peer runs the trunk over the 4N aligned inputs. Making the inputs, pooling and the head are this library's for all of
them. All get what they like best: batch norm folded, a static batch, the number of threads told, channels_last where it
matters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgran_fast import MGRAN, ops
from mgran_fast.engine.program import program
from mgran_fast.engine.whole import Whole
from mgran_fast.ma import concatenate

Run = Callable[[], torch.Tensor]
Trunk = Callable[[torch.Tensor], torch.Tensor]


def missing(*modules: str) -> list[str]:
    """Those that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def around(model: MGRAN, trunk: Trunk, dtype: torch.dtype, crops: torch.Tensor, region_map: torch.Tensor) -> Run:
    """The whole way from crops to embeddings with a trunk [4N, 3, H, W] -> [4N, D, h, w]."""
    region = torch.arange(4).repeat(len(crops))

    def run() -> torch.Tensor:
        with torch.no_grad():
            inputs = ops.inputs(crops, region_map, model.scale, model.mean, model.std, dtype=dtype)
            features = trunk(inputs.flatten(0, 1))
            pooled = ops.pooling(features, region_map, region, model.ma.pooling).unflatten(0, (-1, 4))
            visible = ops.visibility(region_map, model.layout)
            return concatenate(model.ma.neck(pooled, visible), visible)

    return run


def four_calls(model: MGRAN, crops: torch.Tensor, region_map: torch.Tensor) -> Run:
    """As the published system runs: one eager call of the trunk for each input, float32, standard layout."""
    trunk = plain(model, torch.float32, torch.contiguous_format)

    def four(inputs: torch.Tensor) -> torch.Tensor:
        each = inputs.unflatten(0, (-1, 4))
        answers = [trunk(each[:, i].contiguous(memory_format=torch.contiguous_format)) for i in range(4)]
        return torch.stack(answers, 1).flatten(0, 1)

    return around(model, four, torch.float32, crops, region_map)


def plain(model: MGRAN, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last) -> Any:
    """A copy of the trunk."""
    trunk = type(model.ma.trunk)(model.config["trunk"], last_stride=model.config["last_stride"]).eval()
    trunk.load_state_dict(model.ma.trunk.state_dict())
    return trunk.to(dtype).to(memory_format=layout)


def eager(model: MGRAN, dtype: torch.dtype) -> Trunk:
    return plain(model, dtype)


def onednn(model: MGRAN, dtype: torch.dtype) -> Trunk:
    """Folded, with bias, residual and ReLU fused: oneDNN's convolutions, called one by one."""
    return Whole(program(model.ma.trunk), dtype, torch.device("cpu"), scale=model.scale, mean=model.mean, std=model.std)


def compiled(model: MGRAN, dtype: torch.dtype) -> Trunk:
    """torch.compile with freezing: weights prepacked, batch norm folded."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    made: Trunk = torch.compile(plain(model, dtype), dynamic=False)
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
