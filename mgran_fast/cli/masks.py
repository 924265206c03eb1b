"""mgran-fast masks: compute the region maps of a data set once, for training and evaluation to read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import TRAIN, WORKERS, app
from mgran_fast.cli.options import Counts, Dataset, Split, Variant
from mgran_fast.errors import DataError

if TYPE_CHECKING:
    from mgran_fast.data.masks import MaskFiles
    from mgran_fast.data.precompute import Built
    from mgran_fast.data.provenance import Provenance
    from mgran_fast.data.records import DataSet
    from mgran_fast.mra import Estimator


@app.command(rich_help_panel=TRAIN)
def masks(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATASET", help="Folder of a data set, file of a table, or any folder of pictures."),
    ],
    mra: Annotated[
        str,
        typer.Option(
            help="Who looks at the pictures: regionnet, regionnet+flip (better, twice the time), torchvision, a file"
            " that RegionNet.save or MaskRCNN.save wrote; or files: take over masks/ and keypoints.json."
        ),
    ] = "regionnet",
    files: Annotated[
        Path | None, typer.Option(help="For --mra files: the folder with masks/ and keypoints.json; default: DATASET.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the cache; default: DATASET/regions.")] = None,
    layout: Annotated[str, typer.Option(help="Body layout that is stored: region or part.")] = "region",
    threshold: Annotated[float, typer.Option(help="A pixel is the person's where its mask is at least this.")] = 0.5,
    size: Annotated[str, typer.Option(help="Height x width that pictures are looked at and stored in.")] = "256x128",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = WORKERS,
    dataset: Dataset = "auto",
    variant: Variant = None,
    split: Split = None,
    counts: Counts = "published",
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compute masks, keypoints and region maps of a data set once.

    Writes one file a part, DATASET/regions/<part>.sqlite (pictures.sqlite where folders are not parts). train and
    evaluate read DATASET/regions by themselves when it is there, before DATASET/masks; --masks FOLDER names another
    place.

    Run it again after a crash, a kill or a full disk, and whenever pictures were added, changed or removed: it goes
    on from what is stored and computes what is missing. Another estimator, layout, threshold or size computes all of
    it anew; the old cache stays until the new one is complete.

    Example: mgran-fast masks data/market1501
    """
    from mgran_fast.cli import common

    if files is not None and mra != "files":
        raise DataError("--files: only --mra files reads them; add it, or leave --files out")
    root, parts = _parts(data, dataset, variant, split, counts)
    estimator = _estimator(mra, files or root)
    folder = output if output is not None else root / "regions"
    start = time.perf_counter()
    made, built = compute(
        root,
        parts,
        estimator,
        folder,
        size=common.parse_size(size),
        layout=layout,
        threshold=threshold,
        batch_size=batch_size,
        workers=workers,
    )
    if json_:
        common.print_json(
            {
                "root": str(root),
                "files": [_figures(one) for one in built],
                "problems": [line for one in built for line in one.problems],
                "estimator": made.estimator,
                "sha256": made.sha256,
                "seconds": time.perf_counter() - start,
            }
        )


def compute(
    root: Path,
    parts: Mapping[str, Sequence[Path]],
    estimator: Estimator | MaskFiles,
    folder: Path,
    *,
    size: tuple[int, int] = (256, 128),
    layout: str = "region",
    threshold: float = 0.5,
    batch_size: int = 64,
    workers: int = WORKERS,
) -> tuple[Provenance, list[Built]]:
    """Build or complete the cache of each part in ``folder``, and tell what happened; "." is a plain folder.

    Raises DataError for settings that cannot be cached, and as :func:`mgran_fast.data.precompute.build` does.
    """
    import torch
    from torch import nn

    from mgran_fast.cli import common
    from mgran_fast.data.precompute import build
    from mgran_fast.data.provenance import provenance

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(estimator, nn.Module):
        estimator = estimator.to(device).eval()
    try:
        made = provenance(estimator, size=size, layout=layout, threshold=threshold)
    except ValueError as error:
        raise DataError(str(error)) from None
    built = []
    for part, pictures in parts.items():
        file = folder / f"{'pictures' if part == '.' else part}.sqlite"
        with common.bar(file.stem) as step:
            one = build(
                pictures, estimator, made, file, root=root, folder=part,
                batch_size=batch_size, workers=workers, device=device, progress=step,
            )  # fmt: skip
        built.append(one)
        _tell(one, common.console.print)
    return made, built


def market_parts(dataset: DataSet) -> dict[str, list[Path]]:
    """The pictures of each part of a data set, by its folder; "." for all where folders are not parts."""
    from mgran_fast.data.sets import pictures_by_part

    return pictures_by_part(dataset)


def _estimator(mra: str, files: Path) -> Estimator | MaskFiles:
    from mgran_fast.cli import common
    from mgran_fast.data.masks import MaskFiles

    return MaskFiles(files) if mra == "files" else common.open_estimator(mra)


def _parts(
    data: Path, name: str, variant: str | None, split: int | None, counts: str
) -> tuple[Path, dict[str, list[Path]]]:
    """The data set's folder, and the pictures of each part; "." is a plain folder."""
    from mgran_fast.cli import common
    from mgran_fast.data.folder import list_pictures
    from mgran_fast.data.market import FOLDERS
    from mgran_fast.data.sets import detect

    kind = detect(data) if name == "auto" else name
    try:
        # Of a plain folder in the Market-1501 layout any part will do.
        need = () if kind == "market" else None
        found = common.open_data(data, kind, variant, split, counts, need=need)
    except DataError:
        pictures = list_pictures(data) if name == "auto" and kind == "market" and data.is_dir() else []
        names, here = set(FOLDERS.values()), data.absolute()
        # Around or inside the parts of a data set: the reader's complaint tells which folder to give.
        around = any(names & set(path.relative_to(data).parts) for path in pictures)
        if not pictures or around or (here.name in names and any(map(Path.is_dir, map(here.parent.joinpath, names)))):
            raise
        common.console.print(f"{data}: {len(pictures)} pictures")
        return data, {".": pictures}
    common.tell_notes(found)
    parts = market_parts(found)
    if not parts:
        raise DataError(f"{found.root}: no usable picture in {', '.join(FOLDERS.values())}")
    return found.root, parts


def _tell(built: Built, say: Any) -> None:
    from mgran_fast.cli.common import tell_some

    if built.changes:
        say(f"{built.file.name}: was made with {'; '.join(built.changes)}: all computed anew", style="yellow")
    size = built.file.stat().st_size
    say(
        f"{built.file}: {built.pictures} pictures, {built.computed} computed in {built.seconds:.0f} s,"
        f" {built.kept} kept, {built.removed} removed; {size / max(1, built.pictures):.0f} bytes a picture"
    )
    if built.without_person:
        say(
            f"  {built.without_person} without a person: a presence below 0.5 or an empty mask"
            f" ({built.empty_masks} empty)",
            style="yellow",
        )
    if built.problems:
        say(f"  {len(built.problems)} pictures cannot be used, and are tried again next time:", style="yellow")
        tell_some(built.problems)


def _figures(built: Built) -> dict[str, Any]:
    return {
        "file": str(built.file),
        "pictures": built.pictures,
        "computed": built.computed,
        "kept": built.kept,
        "removed": built.removed,
        "without_person": built.without_person,
        "empty_masks": built.empty_masks,
        "unusable": len(built.problems),
        "bytes": built.file.stat().st_size,
        "changes": list(built.changes),
        "seconds": built.seconds,
    }
