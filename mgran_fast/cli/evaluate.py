"""mgran-fast evaluate: rank the gallery of a data set with a trained model."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgran_fast.cli import TRAIN, WORKERS, app
from mgran_fast.cli.options import Counts, Dataset, Split, Variant
from mgran_fast.errors import DataError

if TYPE_CHECKING:
    from mgran_fast.data import DataSet, Masks
    from mgran_fast.engine.engine import Engine
    from mgran_fast.model import MGRAN


@app.command(rich_help_panel=TRAIN)
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of the data set, or file of a table: mgran-fast datasets.")],
    checkpoint: Annotated[Path, typer.Option(help="model.safetensors of a run.")] = Path(
        "runs/train/model.safetensors"
    ),
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Region cache of mgran-fast masks, or folder with masks/ and keypoints.json; default: DATA/regions,"
            " else DATA."
        ),
    ] = None,
    mra: Annotated[
        str | None,
        typer.Option(
            help="Make masks while evaluating: regionnet (which also runs where there are no masks), regionnet+flip,"
            " torchvision, or a file that RegionNet.save or MaskRCNN.save wrote."
        ),
    ] = None,
    layout: Annotated[str | None, typer.Option(help="The layout that the checkpoint must have.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Embed with an engine in this precision: float32, bfloat16, float16 (on a GPU) or int8, calibrated on"
            " 64 training pictures."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report here.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = WORKERS,
    dataset: Dataset = "auto",
    variant: Variant = None,
    split: Split = None,
    counts: Counts = "published",
    queries: Annotated[
        str,
        typer.Option(
            help="single, or multiple: the mean of all pictures of a query's person by the query's camera asks"
            " (Market-1501's gt_bbox).",
            rich_help_panel="Protocol",
        ),
    ] = "single",
    draws: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draw the gallery of cuhk03-classic this often and take the mean, as is usual; default: the exact"
            " expectation of that.",
            rich_help_panel="Protocol",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.", rich_help_panel="Protocol")] = 0,
    ap: Annotated[
        str,
        typer.Option(
            help="Average precision is hits, the mean precision at hits, or trapezoid, as the code of Market-1501 has"
            " it.",
            rich_help_panel="Protocol",
        ),
    ] = "hits",
    ties: Annotated[
        str,
        typer.Option(
            help="Of pictures at one distance the first is: index, the earlier in the gallery; pessimistic, a wrong"
            " one; optimistic, a right one.",
            rich_help_panel="Protocol",
        ),
    ] = "index",
    metric: Annotated[
        str, typer.Option(help="Distance of embeddings: euclidean or cosine.", rich_help_panel="Protocol")
    ] = "euclidean",
    visible: Annotated[
        bool,
        typer.Option("--visible", help="Compare the parts that both pictures show.", rich_help_panel="Protocol"),
    ] = False,
    flip: Annotated[
        bool,
        typer.Option("--flip", help="Embed each picture and its mirror image.", rich_help_panel="Protocol"),
    ] = False,
    cameras: Annotated[
        bool,
        typer.Option(
            "--cameras/--no-cameras",
            help="Leave out pictures of the query's person by the query's camera; not so where cameras are not known.",
            rich_help_panel="Protocol",
        ),
    ] = True,
    rerank: Annotated[
        bool,
        typer.Option(
            "--rerank",
            help="Re-rank by k-reciprocal neighbours, of queries and gallery alike.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    blur_faces: Annotated[bool, typer.Option("--blur-faces", help="Hide the heads in the report.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Rank the gallery of a data set by its own rule: Rank-1/5/10, and mAP where the rule has it.

    That is the Market-1501 rule, or for cuhk03-classic a single gallery shot, which has no mAP.

    Example: mgran-fast evaluate --data data/market1501 --checkpoint runs/market/model.safetensors
    """
    import torch

    from mgran_fast.cli import common
    from mgran_fast.data.records import SINGLE_GALLERY_SHOT
    from mgran_fast.metrics import protocols
    from mgran_fast.metrics.distances import METRICS
    from mgran_fast.metrics.evaluation import evaluate as run
    from mgran_fast.metrics.hits import TIES
    from mgran_fast.model import MGRAN

    if mra is not None and masks is not None:
        raise DataError("--masks and --mra: give one or the other")
    for option, value, known in (
        ("--queries", queries, protocols.QUERIES), ("--ap", ap, protocols.AP_TEXT), ("--ties", ties, TIES),
        ("--metric", metric, METRICS),
    ):  # fmt: skip
        if value not in known:
            raise DataError(f"{option} {value}: choose {' or '.join(known)}")
    if rerank and visible:
        raise DataError("--rerank and --visible: re-ranking compares whole vectors; take one of the two")
    model = MGRAN.from_file(checkpoint, layout=layout, mra=None if mra is None else common.open_estimator(mra))
    if torch.cuda.is_available():
        model = model.cuda()
    found = common.open_data(data, dataset, variant, split, counts, need=("query", "gallery"))
    common.tell_notes(found)
    if queries == "multiple" and not found.multi_query:
        raise DataError(
            f"--queries multiple: {found.name} in {found.root} has no pictures for them, as Market-1501 has in gt_bbox;"
            " take single queries"
        )
    if draws is not None and found.protocol != SINGLE_GALLERY_SHOT:
        raise DataError(
            f"--draws {draws}: {found.name} is scored by the rule {found.protocol}, which draws nothing; leave it out"
        )
    for option, value, default in (("--ap", ap, "hits"), ("--ties", ties, "index")):
        if value != default and found.protocol == SINGLE_GALLERY_SHOT:
            raise DataError(
                f"{option} {value}: {found.name} is scored by a single gallery shot, which has no mAP; leave it out"
            )
    rule = protocols.Rule(
        found.protocol, queries, ap, ties, metric, visible=visible, flip=flip, reranked=rerank, cameras=cameras,
        draws=draws, seed=seed,
    )  # fmt: skip
    files = common.open_masks(found.root, masks, wanted=mra is None and not model.layout.whole)
    if files is None and mra is None and not model.layout.whole:
        common.console.print(f"{found.root}: no regions/ nor masks/ beside the pictures; RegionNet makes the masks")
    if files is not None:
        files.check(found.gallery, "gallery")
        files.check(found.multi_query if queries == "multiple" else (), "multiple query")
    network = model if precision is None else _engine(model, precision, found, files)
    start = time.perf_counter()
    with common.bar("evaluate") as step:
        result = run(
            network, found.query, found.gallery, files, rule, multi_query=found.multi_query, batch_size=batch_size,
            workers=workers, progress=step,
        )  # fmt: skip
    seconds = {"evaluate": time.perf_counter() - start}
    title = f"{checkpoint.parent.name or checkpoint.name} on {found.name}"
    results = {"model": result}
    path = None
    if report is not None:
        path = common.write_report(
            report,
            title=title,
            model=model,
            dataset=found,
            masks=files,
            results=results,
            history=[],
            problems=[],
            seconds=seconds,
            blur_faces=blur_faces,
        )
    common.tell(results, title)
    if path is not None:
        common.console.print(f"report: {path}")
    if json_:
        curve = result.roc
        common.print_json(
            {
                **common.figures(result),
                "intervals": {name: [one.low, one.high] for name, one in result.intervals.items()},
                "verification": None
                if curve is None
                else {
                    "auc": curve.auc,
                    **{f"tpr at fpr {rate:g}": curve.at(rate) for rate in common.FALSE_RATES},
                },
                "cameras": [dataclasses.asdict(pair) for pair in result.camera_pairs],
                "scored": result.details,
                "counts": result.counts,
                "seconds": seconds["evaluate"],
                "report": None if path is None else str(path),
            }
        )


def _engine(model: MGRAN, precision: str, dataset: DataSet, files: Masks | None) -> Engine:
    from mgran_fast.cli import common
    from mgran_fast.engine.optimize import calibrate, optimize
    from mgran_fast.metrics.embedding import some_crops

    if precision != "int8":
        return optimize(model, precision)
    # Of people that are not looked for, where there are any.
    crops, region_map = some_crops(model, dataset.train or dataset.gallery, files)
    calibration = calibrate(model, crops, region_map=region_map)
    common.console.print(str(calibration))
    return optimize(model, precision, calibration=calibration)
