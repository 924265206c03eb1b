"""mgran-fast train: train MA on a folder of people, evaluate it, write a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mgran_fast.cli import app
from mgran_fast.errors import DataError, MGRANError


def missing_extra(error: ImportError) -> MGRANError:
    """What to say when the packages for training are not installed."""
    return MGRANError(f"training wants packages that are not installed ({error.name}): pip install 'mgran_fast[train]'")


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder in the Market-1501 layout.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the report.")] = Path("runs/train"),
    masks: Annotated[Path | None, typer.Option(help="Folder with masks/ and keypoints.json; default: DATA.")] = None,
    layout: Annotated[str, typer.Option(help="Body layout: region, part, box or none.")] = "region",
    size: Annotated[str, typer.Option(help="Height x width of the crops.")] = "256x128",
    trunk: Annotated[str, typer.Option(help="Shared trunk: resnet18 to resnet152.")] = "resnet50",
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
    workers: Annotated[int, typer.Option(help="Processes that read pictures.")] = 2,
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
        from mgran_fast.train.config import TrainConfig
        from mgran_fast.train.run import train as run
    except ImportError as error:
        raise missing_extra(error) from None

    config = settings(
        TrainConfig,
        layout=layout,
        size=common.parse_size(size),
        trunk=trunk,
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
    files = common.open_masks(dataset.root, masks, wanted=not get(config.layout).whole)
    outcome = train_and_evaluate(
        dataset, files, config, output, weights=weights, resume=resume, title=f"MGRAN on {dataset.name}",
        blur_faces=blur_faces, run=run,
    )  # fmt: skip
    if json_:
        common.print_json(outcome)


def settings(make: Any, **values: Any) -> Any:
    """The TrainConfig of these values; DataError for one that is out of its range."""
    try:
        return make(**values)
    except ValueError as error:
        raise DataError(str(error)) from None


def train_and_evaluate(
    dataset: Any,
    masks: Any,
    config: Any,
    output: Path,
    *,
    weights: Path | None,
    resume: bool,
    title: str,
    blur_faces: bool,
    run: Any,
) -> dict[str, Any]:
    """The main job: evaluate the untrained model, train, evaluate, write the report; returns all figures."""
    import torch

    from mgran_fast.cli import common
    from mgran_fast.metrics.evaluation import evaluate
    from mgran_fast.train.run import build, check
    from mgran_fast.weights.trunk import load_trunk

    # Before the first evaluation, which may take minutes.
    check(dataset, config, output, resume=resume)
    model = build(config, len(dataset.people()))
    if weights is not None:
        load_trunk(model, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, float] = {}
    results = {}
    start = time.perf_counter()
    with common.bar("untrained") as step:
        results["untrained" if weights is None else "before training"] = evaluate(
            model.to(device), dataset.query, dataset.gallery, masks, workers=config.workers, progress=step
        )
    seconds["evaluate before"] = time.perf_counter() - start
    first = next(iter(results.values())).ranking
    common.console.print(f"before training: Rank-1 {100 * first.at(1):.1f} %, mAP {100 * first.map:.1f} %")

    try:
        trained = run(
            dataset, masks, config, output, model=model, resume=resume, progress=common.console.is_terminal,
            on_epoch=lambda line: common.console.print(_epoch(line, config.epochs)),
        )  # fmt: skip
    except FloatingPointError as error:
        raise MGRANError(str(error)) from None
    except KeyboardInterrupt:
        common.console.print("mgran-fast: interrupted; the run goes on with --resume")
        raise typer.Exit(130) from None
    seconds["train"] = trained.seconds
    start = time.perf_counter()
    with common.bar("evaluate") as step:
        results["trained"] = evaluate(
            trained.model.to(device), dataset.query, dataset.gallery, masks, workers=config.workers, progress=step
        )
    seconds["evaluate after"] = time.perf_counter() - start
    final = results["trained"].ranking
    trained.history[-1].update(rank1=final.at(1), map=final.map)
    path = common.write_report(
        output / "report.html",
        title=title,
        model=trained.model,
        dataset=dataset,
        masks=masks,
        results=results,
        history=trained.history,
        problems=trained.problems,
        seconds=seconds,
        blur_faces=blur_faces,
    )
    common.tell(results, title)
    common.console.print(
        f"{len(trained.history)} epochs in {trained.seconds / 60:.1f} minutes\n"
        f"model:  {trained.checkpoint}\nreport: {path}"
    )
    return {
        **{name: common.figures(one) for name, one in results.items()},
        "counts": results["trained"].counts,
        "epochs": len(trained.history),
        "seconds": seconds,
        "model": str(trained.checkpoint),
        "report": str(path),
    }


def _epoch(line: dict[str, float], epochs: int) -> str:
    text = f"epoch {line['epoch']:.0f}/{epochs}: {line['seconds']:.0f} s"
    if "loss" in line:
        text += f", loss {line['loss']:.3f}, training accuracy {100 * line['accuracy']:.1f} %"
    if "rank1" in line:
        text += f", Rank-1 {100 * line['rank1']:.1f} %, mAP {100 * line['map']:.1f} %"
    return text
