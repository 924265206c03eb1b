"""mgran-fast train-mra: train an estimator of masks and keypoints, or measure one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import TRAIN, WORKERS, app
from mgran_fast.cli.train import missing_extra
from mgran_fast.errors import DataError, MGRANError

if TYPE_CHECKING:
    from mgran_fast.data.labels import LabelledSet, PersonCrops
    from mgran_fast.mra import Estimator
    from mgran_fast.train.mra.config import MRAConfig


@app.command("train-mra", rich_help_panel=TRAIN)
def train_mra(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder of crops with masks/ and keypoints.json, or COCO file (.json); may be repeated."),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of the COCO files' pictures.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder with masks/ and keypoints.json of the --data folders; default: each.")
    ] = None,
    synthetic: Annotated[int, typer.Option(help="Draw so many people to learn from, with exact labels.")] = 0,
    teacher: Annotated[
        str | None, typer.Option(help="Estimator that labels pictures without labels: as for evaluate --mra.")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="Folder of pictures without people, put behind people (regionnet).")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="What to measure on: a folder, a COCO file, or synthetic:PEOPLE:SEED; may be repeated."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and drawn people.")] = Path("runs/mra"),
    model: Annotated[str, typer.Option(help="regionnet or maskrcnn.")] = "regionnet",
    mode: Annotated[str, typer.Option(help="Of maskrcnn: box or detect.")] = "box",
    whole_pictures: Annotated[
        bool, typer.Option("--whole-pictures", help="Of maskrcnn: learn from whole pictures, not from crops.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="Where to start: a file of an earlier run, 'pretrained' (regionnet), 'torchvision'."),
    ] = None,
    trunk_weights: Annotated[
        Path | None, typer.Option(help="ImageNet weights of a MobileNetV2 to start from (regionnet).")
    ] = None,
    mra: Annotated[str | None, typer.Option(help="With --epochs 0: the estimator to measure.")] = None,
    size: Annotated[str, typer.Option(help="Height x width of the crops.")] = "256x128",
    working_size: Annotated[str, typer.Option(help="Height x width inside regionnet, multiples of 32.")] = "192x96",
    channels: Annotated[int, typer.Option(help="Of regionnet's feature pyramid.")] = 64,
    context: Annotated[int, typer.Option(help="Of regionnet: blocks at stride 32 after the trunk.")] = 3,
    backbone: Annotated[str, typer.Option(help="Of maskrcnn: resnet18 to resnet152.")] = "resnet50",
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures; 0 measures only.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Crops, or whole pictures, at once.")] = 64,
    batches: Annotated[int | None, typer.Option(help="Batches of an epoch; default: everything once.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, after the warm-up.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-2,
    margin: Annotated[float, typer.Option(help="By how much a box in a picture grows on each side.")] = 0.05,
    jitter: Annotated[float, typer.Option(help="By how much of it the sides of a box move at random.")] = 0.1,
    precision: Annotated[str, typer.Option(help="auto, bf16 or float32.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read pictures.")] = WORKERS,
    evaluate_every: Annotated[int, typer.Option(help="Epochs between measurements; 0: at the end only.")] = 5,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUTPUT.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train RegionNet or the joint Mask R-CNN, apart from MA, and measure it on held-out pictures.

    Of a Market-1501 style folder, bounding_box_train is learnt from, query and bounding_box_test are measured on.
    Two figures: the mean IoU of the masks at 0.5, and the share of visible keypoints within 0.2 torso lengths.

    Example: mgran-fast train-mra --data data/market1501 --test data/market1501 --output runs/regionnet

    mgran-fast train-mra --data person_keypoints_train2017.json --model maskrcnn --weights torchvision

    mgran-fast train-mra --epochs 0 --mra torchvision --test data/market1501 --test synthetic:50
    """
    from mgran_fast.cli import common, mra_data
    from mgran_fast.train.mra.config import MRAConfig

    values: dict[str, Any] = {
        "model": model, "mode": mode, "whole_pictures": whole_pictures, "size": common.parse_size(size),
        "working_size": common.parse_size(working_size, "--working-size"), "channels": channels, "context": context,
        "backbone": backbone, "epochs": epochs, "batch_size": batch_size, "batches": batches,
        "learning_rate": learning_rate, "weight_decay": weight_decay, "margin": margin, "jitter": jitter,
        "precision": precision, "workers": workers, "evaluate_every": evaluate_every, "seed": seed,
    }  # fmt: skip
    try:
        config = MRAConfig(**values)
    except ValueError as error:
        raise DataError(str(error)) from None
    # Before anything is drawn or labelled, which may take long.
    for name in test or []:
        mra_data.parse_synthetic(name)
    job = _Job(config, output, pictures, labels)
    if not epochs:
        given = [
            name for name, value in (("--data", data), ("--synthetic", synthetic), ("--teacher", teacher)) if value
        ]
        if given or not test:
            raise DataError(
                f"--epochs 0 measures only: leave out {', '.join(given)}" if given else "--epochs 0 wants a --test"
            )
        outcome = job.measure(_estimator(mra, weights, config), job.tests(test), mra or weights or "pretrained")
    else:
        if mra is not None:
            raise DataError("--mra is for --epochs 0; to start from an estimator, use --weights")
        if not (data or synthetic):
            raise DataError("nothing to learn from: give --data, or --synthetic PEOPLE")
        try:
            from mgran_fast.train.lightning import STATE
        except ImportError as error:
            raise missing_extra(error) from error
        if not resume and (output / STATE).is_file():
            raise DataError(f"{output}: holds a run already; continue it with --resume or choose another --output")
        start = _start(config, weights, trunk_weights)
        outcome = job.train(
            job.learnt(data or [], synthetic, teacher), start, job.tests(test or []), backgrounds, resume=resume
        )
    if json_:
        common.print_json(outcome)


def _estimator(mra: str | None, weights: str | None, config: MRAConfig) -> Estimator:
    """What ``--epochs 0`` measures."""
    from mgran_fast.cli import common

    if mra is not None and weights is not None:
        raise DataError("--mra and --weights: give one or the other")
    if mra is not None:
        return common.open_estimator(mra)
    estimator: Estimator = _opened(config, weights or "pretrained")
    return estimator


def _opened(config: MRAConfig, weights: str) -> Any:
    """The estimator of ``config.model`` that ``--weights`` names."""
    from mgran_fast.mra.maskrcnn import MaskRCNN, find_checkpoints
    from mgran_fast.mra.regionnet import RegionNet

    if config.model == "regionnet":
        return RegionNet.from_pretrained() if weights == "pretrained" else RegionNet.from_file(weights)
    if weights == "pretrained":
        raise DataError("--model maskrcnn comes with no weights: give --weights FILE or --weights torchvision")
    if weights != "torchvision":
        return MaskRCNN.from_file(weights)
    found: dict[str, Any] = dict(find_checkpoints())
    if not found:
        raise DataError("--weights torchvision: torchvision's COCO weights are not in torch's cache; name a file")
    # One backbone for all heads: that is what is trained. Two are exact, and measured as --mra torchvision.
    return MaskRCNN(mode=config.mode, weights={**found, "backbone": "mask" if "mask" in found else "keypoints"})


def _start(config: MRAConfig, weights: str | None, trunk_weights: Path | None) -> Any:
    """The model that training starts from, or None for a new one."""
    if trunk_weights is not None and (weights is not None or config.model != "regionnet"):
        raise DataError("--trunk-weights is for a new regionnet, without --weights")
    if weights is not None:
        return _opened(config, weights)
    if trunk_weights is None:
        return None
    from mgran_fast.train.mra.run import build
    from mgran_fast.weights.trunk import read_state

    model: Any = build(config)
    model.load_imagenet(read_state(trunk_weights))
    return model


@dataclasses.dataclass(frozen=True)
class _Job:
    """One call of the command."""

    config: MRAConfig
    output: Path
    pictures: Path | None
    labels: Path | None

    def learnt(self, data: list[str], synthetic: int, teacher: str | None) -> list[LabelledSet]:
        """The sets to learn from."""
        from mgran_fast.cli import common, mra_data
        from mgran_fast.data import Problems

        if teacher is not None and not any(not name.lower().endswith(".json") for name in data):
            raise DataError("--teacher labels folders of pictures: name one with --data; COCO files have their labels")
        sets, problems, device = [], Problems(), _device()
        master: Any = None if teacher is None else common.open_estimator(teacher)
        if hasattr(master, "to"):
            master = master.to(device).eval()
        for number, name in enumerate(data):
            if master is None or name.lower().endswith(".json"):
                sets.append(mra_data.open_set(name, part="train", pictures=self.pictures, labels=self.labels))
                continue
            place = self.output / "labels" / f"{number}-{Path(name).name or 'data'}"
            sets.append(
                mra_data.taught(
                    name,
                    master,
                    place,
                    labels=self.labels,
                    size=self.config.size,
                    workers=self.config.workers,
                    device=device,
                    problems=problems,
                )
            )
        if synthetic:
            sets.append(self._drawn(synthetic, self.config.seed))
        for one in sets:
            mra_data.tell_set(one)
        return sets

    def tests(self, names: list[str]) -> dict[str, PersonCrops]:
        """The crops of each test set by name."""
        from mgran_fast.cli import mra_data
        from mgran_fast.data.labels import crops

        found: dict[str, PersonCrops] = {}
        for name in names:
            people = mra_data.parse_synthetic(name)
            if people is None:
                one = mra_data.open_set(name, part="test", pictures=self.pictures)
                mra_data.tell_set(one)
            else:
                one = self._drawn(*people)
            found[name] = crops(one.pictures, self.config.size, self.config.margin)
        return found

    def _drawn(self, people: int, seed: int) -> LabelledSet:
        from mgran_fast.cli import mra_data

        return mra_data.drawn(
            people, seed, self.output / "drawn", size=self.config.size, workers=self.config.workers
        )  # fmt: skip

    def measure(self, estimator: Any, tests: Mapping[str, PersonCrops], title: str) -> dict[str, Any]:
        """Measure an estimator on each test set; a table, and its figures."""
        from mgran_fast.cli import common, mra_data
        from mgran_fast.data import Problems
        from mgran_fast.metrics.agreement import measure

        device, results = _device(), {}
        if hasattr(estimator, "to"):
            estimator = estimator.to(device)
        for name, test in tests.items():
            problems = Problems()
            with common.bar(name) as step:
                found = measure(
                    estimator,
                    test,
                    batch_size=self.config.batch_size,
                    workers=self.config.workers,
                    device=device,
                    problems=problems,
                    progress=step,
                )
            results[name] = mra_data.figures(found, problems.lines())
        mra_data.tell(results, title)
        return {"tests": results}

    def train(
        self,
        sets: list[LabelledSet],
        start: Any,
        tests: dict[str, PersonCrops],
        backgrounds: Path | None,
        *,
        resume: bool,
    ) -> dict[str, Any]:
        """Train, measure, and say where the model is."""
        from mgran_fast.cli import common
        from mgran_fast.data.folder import list_pictures
        from mgran_fast.train.mra.run import train

        try:
            trained = train(
                [picture for one in sets for picture in one.pictures],
                self.config,
                self.output,
                model=start,
                tests=tests,
                backgrounds=[] if backgrounds is None else list_pictures(backgrounds),
                resume=resume,
                progress=common.console.is_terminal,
                on_epoch=lambda line: common.console.print(_told(line, self.config.epochs)),
            )
        except FloatingPointError as error:
            raise MGRANError(str(error)) from None
        except KeyboardInterrupt:
            common.console.print("mgran-fast: interrupted; go on with --resume")
            raise typer.Exit(130) from None
        measured = self.measure(trained.estimator, tests, str(self.output)) if tests else {"tests": {}}
        common.console.print(f"{len(trained.history)} epochs in {trained.seconds / 60:.1f} minutes")
        common.console.print(f"model: {trained.checkpoint}")
        return {
            **measured,
            "epochs": len(trained.history),
            "seconds": trained.seconds,
            # JSON knows no NaN, which is a test set's figure when it has nothing to compare.
            "history": [{k: v if math.isfinite(v) else None for k, v in line.items()} for line in trained.history],
            "problems": trained.problems,
            "model": str(trained.checkpoint),
        }


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _told(line: dict[str, float], epochs: int) -> str:
    losses = [f"{name} {value:.4f}" for name, value in line.items() if name.endswith("loss")]
    shares = [f"{name} {100 * value:.1f} %" for name, value in line.items() if name.startswith(("iou ", "keypoints "))]
    return f"epoch {line['epoch']:.0f}/{epochs}: " + ", ".join([f"{line['seconds']:.0f} s", *losses, *shares])
