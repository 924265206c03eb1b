"""The main job of ``train`` and ``demo``: evaluate, train, evaluate again, write the report.

Imports the packages of the extra ``train``; the commands import this module when they run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from mgran_fast.cli import common
from mgran_fast.data import DataSet, Masks
from mgran_fast.errors import MGRANError
from mgran_fast.metrics.evaluation import evaluate
from mgran_fast.train import logs
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.machines import Machines, is_first
from mgran_fast.train.run import STATE, build, check, train
from mgran_fast.weights.trunk import load_trunk

__all__ = ["STATE", "settings", "train_and_evaluate"]


def settings(file: Path | None = None, defaults: Mapping[str, Any] | None = None, **given: Any) -> TrainConfig:
    """The TrainConfig of what is ``given``, else of the YAML file, else of these defaults, else of its own.

    Raises DataError for a wrong file, or a value that is out of its range.
    """
    if file is None:
        return TrainConfig.make({**(defaults or {}), **given})
    named = TrainConfig.read(file)
    left = {name: value for name, value in (defaults or {}).items() if name not in named}
    return TrainConfig.from_yaml(file, **{**left, **given})


def train_and_evaluate(
    dataset: DataSet,
    masks: Masks | None,
    config: TrainConfig,
    output: Path,
    *,
    title: str,
    weights: Path | None = None,
    resume: bool = False,
    blur_faces: bool = False,
    machines: Machines | None = None,
) -> dict[str, Any]:
    """The main job: evaluate the untrained model, train, evaluate, write the report; returns all figures.

    Of several processes the first one does all but the training alone; the others leave by typer.Exit when it is over.
    """
    # Before the first evaluation, which may take minutes.
    check(dataset, config, output, resume=resume, masks=masks, machines=machines)
    model = build(config, len(dataset.people()))
    if weights is not None:
        load_trunk(model, weights)
    device = (machines or Machines()).device
    seconds: dict[str, float] = {}
    results = {}
    start = time.perf_counter()
    if is_first():
        with common.bar("untrained") as step:
            results["untrained" if weights is None else "before training"] = evaluate(
                model.to(device), dataset.query, dataset.gallery, masks, workers=config.workers, progress=step
            )
        seconds["evaluate before"] = time.perf_counter() - start
        first = next(iter(results.values())).ranking
        common.console.print(f"before training: Rank-1 {100 * first.at(1):.1f} %, mAP {100 * first.map:.1f} %")

    try:
        trained = train(
            dataset,
            masks,
            config,
            output,
            model=model,
            resume=resume,
            progress=common.console.is_terminal,
            on_epoch=lambda line: common.console.print(_epoch(line, config.epochs)),
            machines=machines,
        )
    except FloatingPointError as error:
        raise MGRANError(str(error)) from None
    except KeyboardInterrupt as stopped:
        common.console.print(f"mgran-fast: {str(stopped) or 'interrupted; the run goes on with --resume'}")
        raise typer.Exit(getattr(stopped, "code", 130)) from None
    if not is_first():
        raise typer.Exit
    seconds["train"] = trained.seconds
    start = time.perf_counter()
    with common.bar("evaluate") as step:
        results["trained"] = evaluate(
            trained.model.to(device), dataset.query, dataset.gallery, masks, workers=config.workers, progress=step
        )
    seconds["evaluate after"] = time.perf_counter() - start
    final = results["trained"].ranking
    trained.history[-1].update(rank1=final.at(1), map=final.map)
    logs.amend(output, {"rank1": final.at(1), "map": final.map})
    path = common.write_report(
        output / "report.html",
        title=title,
        model=trained.model,
        dataset=dataset,
        masks=masks,
        results=results,
        history=[{"epoch": 0.0, "rank1": first.at(1), "map": first.map}, *trained.history],
        problems=trained.problems,
        seconds=seconds,
        counts=trained.counts,
        blur_faces=blur_faces,
    )
    common.tell(results, title)
    common.console.print(
        f"{len(trained.history)} epochs in {trained.seconds / 60:.1f} minutes\n"
        f"model:  {trained.checkpoint}\nreport: {path}"
    )
    return {
        **{name: common.figures(one) for name, one in results.items()},
        "counts": {**results["trained"].counts, **trained.counts},
        "epochs": len(trained.history),
        "seconds": seconds,
        "model": str(trained.checkpoint),
        "report": str(path),
    }


def _epoch(line: dict[str, float], epochs: int) -> str:
    text = f"epoch {line['epoch']:.0f}/{epochs}: {line['seconds']:.0f} s"
    if "loss" in line:
        text += f", loss {line['loss']:.3f}, training accuracy {100 * line['accuracy']:.1f} %"
    if "waiting" in line:
        text += f", {line['persons_per_second']:.0f} persons/s, {100 * line['waiting']:.0f} % waiting for data"
    if "rank1" in line:
        text += f", Rank-1 {100 * line['rank1']:.1f} %, mAP {100 * line['map']:.1f} %"
    return text
