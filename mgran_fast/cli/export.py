"""mgran-fast export: a trained model as a file for other runtimes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import USE, app
from mgran_fast.errors import MGRANError

if TYPE_CHECKING:
    from mgran_fast.model import MGRAN

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "engine": ".engine.safetensors"}


@app.command(rich_help_panel=USE)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="model.safetensors of a run.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The file to write; default: beside the checkpoint, .onnx, .pt2 or .engine.safetensors."),
    ] = None,
    format: Annotated[
        str, typer.Option(help="onnx; torch for torch.export.load; or engine, for FeatureExtractor and extract.")
    ] = "onnx",
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Format torch: call this library's kernels; wants it where it is loaded.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(help="Format engine: bfloat16 (the default), float32, int8, or float16 (on a GPU)."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Precision int8: a folder or table of pictures like those to come, to find the ranges on."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a model for other runtimes, from crops and region maps to embeddings, or as an engine of this library.

    It takes any number of people. What other runtimes read is checked before it is written.

    Example: mgran-fast export runs/market/model.safetensors
    """
    from mgran_fast.cli import common
    from mgran_fast.engine.export import export as write
    from mgran_fast.model import MGRAN

    if format not in SUFFIXES:
        raise MGRANError(f"--format must be one of {', '.join(SUFFIXES)}, not {format!r}")
    if kernels and format == "onnx":
        raise MGRANError("--kernels is for --format torch: ONNX has no kernels of ours")
    if format != "engine" and (precision is not None or calibrate is not None):
        raise MGRANError("--precision and --calibrate are for --format engine")
    if (precision == "int8") != (calibrate is not None):
        raise MGRANError("--precision int8 and --calibrate PICTURES go together")
    model = MGRAN.from_file(checkpoint).eval()
    path = checkpoint.with_suffix(SUFFIXES[format]) if output is None else output
    if format == "engine":
        told = _engine(model, path, precision or "bfloat16", calibrate)
        if json_:
            common.print_json({"path": str(path), "format": format, **told})
        return
    try:
        error = write(model, path, format, kernels=kernels)
    except OSError as problem:
        raise MGRANError(_unwritten(path, problem)) from None
    h, w = model.size
    taken = f"crops uint8 [N, {h}, {w}, 3] and region_map uint8 [N, {h}, {w}]"
    common.console.print(f"{path}: {taken} -> embeddings float32 [N, {model.dim}]")
    if math.isnan(error):
        common.console.print("not run: onnxruntime is not installed", style="yellow")
    else:
        common.console.print(f"run on three people: within {error:.1e} of the model")
    if json_:
        common.print_json({"path": str(path), "format": format, "error": None if math.isnan(error) else error})


def _engine(model: MGRAN, path: Path, precision: str, pictures: Path | None) -> dict[str, Any]:
    """Write an engine: what is told of it."""
    import torch
    from safetensors import SafetensorError

    from mgran_fast.cli import common
    from mgran_fast.data import Record
    from mgran_fast.engine.optimize import calibrate, optimize
    from mgran_fast.metrics.embedding import some_crops
    from mgran_fast.search.pictures import find_pictures

    if torch.cuda.is_available() and precision != "int8":
        model = model.cuda()
    calibration = None
    if pictures is not None:
        _, found = find_pictures(pictures, timed=False)
        crops, _ = some_crops(model, [Record(one.path, -1, 0) for one in found], None)
        if not len(crops):
            raise MGRANError(f"--calibrate {pictures}: not one picture could be read")
        calibration = calibrate(model, crops)
        common.console.print(str(calibration))
    try:
        engine = optimize(model, precision, calibration=calibration)
    except ValueError as error:
        raise MGRANError(str(error)) from None
    try:
        engine.save(path)
    except (OSError, SafetensorError) as problem:
        raise MGRANError(_unwritten(path, problem)) from None
    common.console.print(f"{path}: {engine}")
    cosines = {} if calibration is None else {"people": calibration.people, "cosines": calibration.cosines}
    return {"precision": engine.precision, "device": str(engine.device), **cosines}


def _unwritten(path: Path, problem: Exception) -> str:
    return f"{path}: cannot be written ({problem}); name another --output"
