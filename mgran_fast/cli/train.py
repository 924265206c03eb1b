"""mgran-fast train: train MA on a data set, evaluate it, write a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import TRAIN, WORKERS, app
from mgran_fast.cli.options import Accelerator, Counts, Dataset, Devices, MasksFolder, Nodes, Split, Strategy, Variant
from mgran_fast.errors import DataError, MGRANError

if TYPE_CHECKING:
    from mgran_fast.data import DataSet, RegionCache
    from mgran_fast.train.config import TrainConfig
    from mgran_fast.train.machines import Machines

_model = partial(typer.Option, rich_help_panel="Model")
_batch = partial(typer.Option, rich_help_panel="Batches")
_loss = partial(typer.Option, rich_help_panel="Losses")
_optim = partial(typer.Option, rich_help_panel="Optimizer")
_run = partial(typer.Option, rich_help_panel="Run")

#: Packages of the extra train, by the names that they are imported by.
EXTRA = ("pytorch_lightning", "pytorch_metric_learning", "yaml")


def missing_extra(error: ImportError) -> Exception:
    """What to say when the packages for training are not installed; any other import error is itself."""
    if (error.name or "").split(".")[0] not in EXTRA:
        return error
    return MGRANError(f"training wants packages that are not installed ({error.name}): pip install 'mgran_fast[train]'")


# Options that name a setting have no default of their own: one that is not given leaves to the file what it says.
@app.command(rich_help_panel=TRAIN)
def train(
    ctx: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set, or file of a table: mgran-fast datasets. Wanted.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the report.")] = Path("runs/train"),
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, which options override; with --resume by default the run's own."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of --print-config, in YAML; may be repeated."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as YAML, and do nothing else.")
    ] = False,
    masks: MasksFolder = None,
    dataset: Dataset = "auto",
    variant: Variant = None,
    split: Split = None,
    counts: Counts = "published",
    weights: Annotated[
        Path | None, _model(help="Trunk weights to start from: torchvision's .pth, or .safetensors.")
    ] = None,
    layout: Annotated[str | None, _model(help="Body layout: region, part, box or none. Default: region.")] = None,
    shape: Annotated[str | None, _model(help="Inputs: full, crop or single. Default: full.")] = None,
    size: Annotated[str | None, _model(help="Height x width of the crops. Default: 256x128.")] = None,
    trunk: Annotated[str | None, _model(help="Shared trunk: resnet18 to resnet152. Default: resnet50.")] = None,
    last_stride: Annotated[int | None, _model(help="Of the trunk's last stage: 1 or 2. Default: 1.")] = None,
    mean: Annotated[str | None, _model(help="Mean of the scaled pixels: R,G,B; without it 0,0,0.")] = None,
    std: Annotated[str | None, _model(help="Deviation of the scaled pixels: R,G,B; without it 1,1,1.")] = None,
    pooling: Annotated[str | None, _model(help="Region pooling: mean, max or gem. Default: mean.")] = None,
    statistics: Annotated[str | None, _model(help="Batch norm: joint or per_input. Default: joint.")] = None,
    epochs: Annotated[int | None, _batch(help="Passes over the training pictures. Default: 60.")] = None,
    people: Annotated[int | None, _batch(help="People in a batch (P), on all devices. Default: 16.")] = None,
    pictures: Annotated[int | None, _batch(help="Pictures of each (K). Default: 4.")] = None,
    batches: Annotated[int | None, _batch(help="Batches of an epoch; without it every picture once.")] = None,
    sampler: Annotated[str | None, _batch(help="pk, balanced or camera. Default: pk.")] = None,
    accumulate: Annotated[int | None, _batch(help="Batches that make one step. Default: 1.")] = None,
    erase: Annotated[float | None, _batch(help="Probability of random erasing. Default: 0.5.")] = None,
    jitter: Annotated[float | None, _batch(help="Of brightness, contrast and colour. Default: 0.0.")] = None,
    identity_loss: Annotated[str | None, _loss(help="softmax or oim. Default: softmax.")] = None,
    label_smoothing: Annotated[float | None, _loss(help="Of softmax. Default: 0.1.")] = None,
    metric_loss: Annotated[str | None, _loss(help="triplet, soft_triplet, circle or none. Default: triplet.")] = None,
    margin: Annotated[float | None, _loss(help="Of triplet. Default: 0.3.")] = None,
    optimizer: Annotated[str | None, _optim(help="adamw, adam or sgd. Default: adamw.")] = None,
    learning_rate: Annotated[float | None, _optim(help="The highest. Default: 0.00035.")] = None,
    weight_decay: Annotated[float | None, _optim(help="Of weights, not of norms. Default: 0.0005.")] = None,
    clip: Annotated[float | None, _optim(help="Largest norm of the gradient; 0: any. Default: 0.0.")] = None,
    schedule: Annotated[str | None, _optim(help="cosine or steps. Default: cosine.")] = None,
    milestones: Annotated[str | None, _optim(help="Of steps: the epochs, as 40,70.")] = None,
    ema: Annotated[float | None, _optim(help="Decay of averaged weights; 0: none. Default: 0.0.")] = None,
    precision: Annotated[str | None, _run(help="auto, bf16, f16 or float32. Default: auto.")] = None,
    recompute: Annotated[
        bool | None, _run("--recompute/--no-recompute", help="Less memory for more time. Default: False.")
    ] = None,
    compile_: Annotated[bool | None, _run("--compile/--no-compile", help="Use torch.compile. Default: False.")] = None,
    workers: Annotated[
        int | None, _run(help="Processes that read pictures, for each device. At most 2 by default.")
    ] = None,
    evaluate_every: Annotated[
        int | None, _run(help="Epochs between evaluations; 0: at the end only. Default: 5.")
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, _run(help="Write the state this often too; 0: after epochs. Default: 0.0.")
    ] = None,
    seed: Annotated[int | None, _run(help="Of everything random. Default: 0.")] = None,
    resume: Annotated[bool, _run("--resume", help="Go on with the run in OUTPUT.")] = False,
    devices: Devices = "auto",
    nodes: Nodes = 1,
    strategy: Strategy = "auto",
    accelerator: Accelerator = "auto",
    blur_faces: Annotated[bool, typer.Option("--blur-faces", help="Hide the heads in the report.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train MA on a data set, evaluate it before and after, write a report.

    Example: mgran-fast train --data data/market1501 --output runs/market --epochs 60

    mgran-fast train --data data/market1501 --config mine.yaml --set circle_scale=64 --resume
    """
    from mgran_fast.cli import common
    from mgran_fast.layouts import get

    try:
        from mgran_fast.cli import job
        from mgran_fast.train import memory
        from mgran_fast.train.run import SETTINGS, check
    except ImportError as error:
        raise missing_extra(error) from error

    if config is None and resume and (output / SETTINGS).is_file():
        config = output / SETTINGS
    settings = job.settings(config, {"workers": WORKERS}, **_given(ctx, set_ or []))
    if print_config:
        typer.echo(settings.to_yaml(), nl=False)
        return
    if data is None:
        ctx.fail("Missing option '--data'.")
    machines = machines_of(devices, nodes, strategy, accelerator)
    found = common.open_data(data, dataset, variant, split, counts)
    common.tell_notes(found)
    wanted = not get(settings.layout).whole
    files = common.open_masks(found.root, masks, wanted=wanted)
    if files is None and wanted:
        # Before the estimator looks at everything, which may take long.
        check(found, settings, output, resume=resume, machines=machines)
        files = own_cache(found, settings, output / "regions", machines)
    memory.keep()
    outcome = job.train_and_evaluate(
        found,
        files,
        settings,
        output,
        title=f"MGRAN on {found.name}",
        weights=weights,
        resume=resume,
        blur_faces=blur_faces,
        machines=machines,
    )
    if json_:
        common.print_json(outcome)


def _given(ctx: typer.Context, texts: list[str]) -> dict[str, Any]:
    """The settings that the command line names, by an option of their own or by --set."""
    from mgran_fast.cli import common
    from mgran_fast.train.config import TrainConfig

    names = {name: name.rstrip("_") for name in ctx.params}
    given = {
        names[name]: value
        for name, value in ctx.params.items()
        if value is not None and names[name] in TrainConfig.kinds()
    }
    if "size" in given:
        given["size"] = common.parse_size(given["size"])
    for name in ("mean", "std"):
        if name in given:
            given[name] = common.parse_channels(f"--{name}", given[name])
    if "milestones" in given:
        given.update(TrainConfig.parse(f"milestones=[{given['milestones']}]"))
    return overrides(texts, given)


def overrides(texts: Iterable[str], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of --set, and those that are ``given`` already. Raises DataError for one that is given twice."""
    from mgran_fast.train.config import TrainConfig

    found = dict(given or {})
    for text in texts:
        for name, value in TrainConfig.parse(text).items():
            if name in found:
                raise DataError(f"--set {text}: {name} is given twice")
            found[name] = value
    return found


def machines_of(devices: str, nodes: int, strategy: str, accelerator: str) -> Machines:
    """Where the options say that a run trains. Raises DataError."""
    from mgran_fast.train.machines import Machines

    try:
        return Machines(int(devices) if devices.isdecimal() else devices, nodes, strategy, accelerator)
    except ValueError as error:
        raise DataError(f"--{error}") from None


def own_cache(dataset: DataSet, settings: TrainConfig, folder: Path, machines: Machines) -> RegionCache:
    """Region maps by RegionNet, in the run's own folder: computed once, and there for --resume."""
    from mgran_fast.cli import common
    from mgran_fast.cli.masks import compute, market_parts
    from mgran_fast.data import RegionCache

    if machines.processes() > 1:
        raise DataError(
            f"{dataset.root}: no regions/ nor masks/ beside the pictures; several processes want them beforehand:"
            f" mgran-fast masks {dataset.root}"
        )
    common.console.print(f"{dataset.root}: no regions/ nor masks/ beside the pictures; RegionNet makes {folder}")
    compute(dataset.root, market_parts(dataset), common.open_estimator(), folder, workers=settings.workers)
    return RegionCache(folder, root=dataset.root)
