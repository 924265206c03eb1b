"""mgran-fast export: a trained model as a file for other runtimes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mgran_fast.cli import app
from mgran_fast.errors import MGRANError

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="model.safetensors of a run.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; default: beside the checkpoint, .onnx or .pt2.")
    ] = None,
    format: Annotated[str, typer.Option(help="onnx, or torch for torch.export.load.")] = "onnx",
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Format torch: call this library's kernels; wants it where it is loaded.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a model, from crops and region maps to embeddings, for any number of people; the file is checked.

    Example: mgran-fast export runs/market/model.safetensors
    """
    from mgran_fast.cli import common
    from mgran_fast.engine.export import export as write
    from mgran_fast.model import MGRAN

    if format not in SUFFIXES:
        raise MGRANError(f"--format must be one of {', '.join(SUFFIXES)}, not {format!r}")
    if kernels and format == "onnx":
        raise MGRANError("--kernels is for --format torch: ONNX has no kernels of ours")
    model = MGRAN.from_file(checkpoint).eval()
    path = checkpoint.with_suffix(SUFFIXES[format]) if output is None else output
    error = write(model, path, format, kernels=kernels)
    h, w = model.size
    taken = f"crops uint8 [N, {h}, {w}, 3] and region_map uint8 [N, {h}, {w}]"
    common.console.print(f"{path}: {taken} -> embeddings float32 [N, {model.dim}]")
    if math.isnan(error):
        common.console.print("not run: onnxruntime is not installed", style="yellow")
    else:
        common.console.print(f"run on three people: within {error:.1e} of the model")
    if json_:
        common.print_json({"path": str(path), "format": format, "error": None if math.isnan(error) else error})
