"""The main job of ``train`` and ``demo``: evaluate, train, evaluate again, write the report.

Imports the packages of the extra ``train``; the commands import this module when they run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from mgran_fast.cli import common, endings
from mgran_fast.data import DataSet, Masks
from mgran_fast.errors import MGRANError
from mgran_fast.metrics.evaluation import Evaluation, evaluate
from mgran_fast.metrics.protocols import Rule
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
    rule = Rule(dataset.protocol)
    seconds: dict[str, float] = {}
    results = {}
    start = time.perf_counter()
    if is_first():
        with common.bar("untrained") as step:
            results["untrained" if weights is None else "before training"] = evaluate(
                model.to(device), dataset.query, dataset.gallery, masks, rule, workers=config.workers, progress=step
            )
        seconds["evaluate before"] = time.perf_counter() - start
        first = next(iter(results.values()))
        common.console.print(f"before training: {common.brief(first)}")

    try:
        trained = train(
            dataset,
            masks,
            config,
            output,
            model=model,
            resume=resume,
            progress=common.console.is_terminal,
            on_epoch=lambda line: endings.epoch(line, config.epochs),
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
            trained.model.to(device), dataset.query, dataset.gallery, masks, rule, workers=config.workers, progress=step
        )
    seconds["evaluate after"] = time.perf_counter() - start
    final = _line(results["trained"])
    trained.history[-1].update(final)
    logs.amend(output, final)
    path = common.write_report(
        output / "report.html",
        title=title,
        model=trained.model,
        dataset=dataset,
        masks=masks,
        results=results,
        history=[{"epoch": 0.0, **_line(first)}, *trained.history],
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
        "scored": results["trained"].details,
        "counts": {**results["trained"].counts, **trained.counts},
        "epochs": len(trained.history),
        "seconds": seconds,
        "model": str(trained.checkpoint),
        "report": str(path),
    }


def _line(evaluation: Evaluation) -> dict[str, float]:
    """What a history keeps of an evaluation."""
    found = evaluation.figures()
    return {name: found[name] for name in ("rank1", "map") if name in found}
