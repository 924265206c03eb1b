"""mgran-fast train: train MA on a folder of people, evaluate it, write a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgran_fast.cli import WORKERS, app
from mgran_fast.errors import MGRANError

if TYPE_CHECKING:
    from mgran_fast.data import DataSet, RegionCache


def missing_extra(error: ImportError) -> Exception:
    """What to say when the packages for training are not installed; any other import error is itself."""
    if (error.name or "").split(".")[0] not in ("pytorch_lightning", "pytorch_metric_learning"):
        return error
    return MGRANError(f"training wants packages that are not installed ({error.name}): pip install 'mgran_fast[train]'")


def _own_cache(dataset: DataSet, folder: Path, workers: int) -> RegionCache:
    """Region maps by RegionNet, in the run's own folder: computed once, and there for --resume."""
    from mgran_fast.cli import common
    from mgran_fast.cli.masks import compute, market_parts
    from mgran_fast.data import RegionCache

    common.console.print(f"{dataset.root}: no regions/ nor masks/ beside the pictures; RegionNet makes {folder}")
    compute(dataset.root, market_parts(dataset), common.open_estimator(), folder, workers=workers)
    return RegionCache(folder, root=dataset.root)


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder in the Market-1501 layout.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the report.")] = Path("runs/train"),
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Region cache of mgran-fast masks, or folder with masks/ and keypoints.json; default: DATA/regions,"
            " else DATA; where neither is, RegionNet makes OUTPUT/regions."
        ),
    ] = None,
    layout: Annotated[str, typer.Option(help="Body layout: region, part, box or none.")] = "region",
    shape: Annotated[str, typer.Option(help="Inputs: full, crop or single.")] = "full",
    size: Annotated[str, typer.Option(help="Height x width of the crops.")] = "256x128",
    trunk: Annotated[str, typer.Option(help="Shared trunk: resnet18 to resnet152.")] = "resnet50",
    last_stride: Annotated[int, typer.Option(help="Stride of the trunk's last stage: 1 or 2.")] = 1,
    weights: Annotated[
        Path | None, typer.Option(help="Trunk weights to start from: torchvision's .pth, or .safetensors.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Mean of the scaled pixels: R,G,B. Default 0,0,0.")] = None,
    std: Annotated[str | None, typer.Option(help="Deviation of the scaled pixels: R,G,B. Default 1,1,1.")] = None,
    pooling: Annotated[str, typer.Option(help="Region pooling: mean, max or gem.")] = "mean",
    statistics: Annotated[str, typer.Option(help="Batch norm in training: joint or per_input.")] = "joint",
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 60,
    people: Annotated[int, typer.Option(help="People in a batch (P).")] = 16,
    pictures: Annotated[int, typer.Option(help="Pictures of each (K).")] = 4,
    batches: Annotated[int | None, typer.Option(help="Batches of an epoch; default: every picture once.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, after the warm-up.")] = 3.5e-4,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 5e-4,
    label_smoothing: Annotated[float, typer.Option(help="Of the identity loss.")] = 0.1,
    margin: Annotated[float, typer.Option(help="Of the batch-hard triplet loss.")] = 0.3,
    erase: Annotated[float, typer.Option(help="Probability of random erasing.")] = 0.5,
    jitter: Annotated[float, typer.Option(help="Largest change of brightness, contrast and colour.")] = 0.0,
    precision: Annotated[str, typer.Option(help="auto, bf16 or float32.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read pictures.")] = WORKERS,
    evaluate_every: Annotated[int, typer.Option(help="Epochs between evaluations; 0: at the end only.")] = 5,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUTPUT.")] = False,
    blur_faces: Annotated[bool, typer.Option("--blur-faces", help="Hide the heads in the report.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train MA on a folder of people, evaluate it before and after, write a report.

    Example: mgran-fast train --data data/market1501 --output runs/market --epochs 60
    """
    from mgran_fast.cli import common
    from mgran_fast.data import read_market
    from mgran_fast.layouts import get

    try:
        from mgran_fast.cli import job
        from mgran_fast.train.run import check
    except ImportError as error:
        raise missing_extra(error) from error

    config = job.settings(
        layout=layout,
        shape=shape,
        size=common.parse_size(size),
        trunk=trunk,
        last_stride=last_stride,
        statistics=statistics,
        pooling=pooling,
        mean=common.parse_channels("--mean", mean),
        std=common.parse_channels("--std", std),
        epochs=epochs,
        people=people,
        pictures=pictures,
        batches=batches,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        margin=margin,
        erase=erase,
        jitter=jitter,
        precision=precision,
        workers=workers,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    dataset = read_market(data)
    common.tell_notes(dataset)
    wanted = not get(config.layout).whole
    files = common.open_masks(dataset.root, masks, wanted=wanted)
    if files is None and wanted:
        # Before the estimator looks at everything, which may take long.
        check(dataset, config, output, resume=resume)
        files = _own_cache(dataset, output / "regions", workers)
    outcome = job.train_and_evaluate(
        dataset,
        files,
        config,
        output,
        title=f"MGRAN on {dataset.name}",
        weights=weights,
        resume=resume,
        blur_faces=blur_faces,
    )
    if json_:
        common.print_json(outcome)
