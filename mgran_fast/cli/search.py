"""mgran-fast search: the pictures of a gallery that look most like a query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import USE, WORKERS, app
from mgran_fast.errors import DataError

if TYPE_CHECKING:
    from mgran_fast.metrics.embedding import Embedded
    from mgran_fast.search import Entry, Found
    from mgran_fast.search.pictures import Picture

_FILTERS = "Filters"


@app.command(rich_help_panel=USE)
def search(
    query: Annotated[Path, typer.Argument(help="A picture, a folder of pictures, or a table of them.")],
    gallery: Annotated[
        Path,
        typer.Argument(
            help="A folder that --save or mgran-fast extract wrote; or a folder of pictures, or a table (CSV or"
            " Parquet) with the columns path and, maybe, person, camera, time."
        ),
    ],
    checkpoint: Annotated[Path, typer.Option(help="model.safetensors of a run.")] = Path(
        "runs/train/model.safetensors"
    ),
    k: Annotated[int, typer.Option("--top", "-k", min=1, help="How many pictures to show for each query.")] = 10,
    camera: Annotated[
        list[str] | None, typer.Option(help="Only pictures by this camera; may be repeated.", rich_help_panel=_FILTERS)
    ] = None,
    not_camera: Annotated[
        list[str] | None, typer.Option(help="No pictures by this camera; may be repeated.", rich_help_panel=_FILTERS)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Only pictures from then on: 2026-11-27T08:30, with a zone or UTC.", rich_help_panel=_FILTERS
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only pictures from before then.", rich_help_panel=_FILTERS)] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the embeddings of GALLERY to this folder, to be searched again.")
    ] = None,
    visible: Annotated[bool, typer.Option("--visible", help="Compare the parts that both pictures show.")] = False,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Region cache of mgran-fast masks for the pictures of GALLERY; default: GALLERY/regions; where there"
            " is none, --mra looks at them."
        ),
    ] = None,
    mra: Annotated[
        str, typer.Option(help="What finds the people: regionnet, regionnet+flip, torchvision, or a file.")
    ] = "regionnet",
    precision: Annotated[
        str | None,
        typer.Option(help="Embed with an engine in this precision: float32, bfloat16 or float16 (on a GPU)."),
    ] = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("runs/search.html"),
    blur_faces: Annotated[bool, typer.Option("--blur-faces", help="Hide the heads in the page.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = WORKERS,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find the pictures that look most like a query, and write a page that shows them.

    Example: mgran-fast search person.jpg pictures/ --checkpoint runs/market/model.safetensors --save galleries/street
    """
    import torch

    from mgran_fast.cli import common
    from mgran_fast.engine.optimize import optimize
    from mgran_fast.extraction import is_extraction, load_gallery
    from mgran_fast.model import MGRAN
    from mgran_fast.report import parts
    from mgran_fast.report.collect import Pictures
    from mgran_fast.report.search import FoundList, SearchPage, write
    from mgran_fast.search.columns import moment
    from mgran_fast.search.files import ENTRIES
    from mgran_fast.search.gallery import Gallery
    from mgran_fast.search.pictures import embed_pictures, find_pictures, gallery_of
    from mgran_fast.weights.files import sha256, told

    for option, value in (("--since", since), ("--until", until)):
        try:
            moment(value)
        except ValueError as error:
            raise DataError(f"{option}: {error}") from None
    saved, extracted = (gallery / ENTRIES).is_file(), is_extraction(gallery)
    if (saved or extracted) and (save is not None or masks is not None):
        raise DataError(f"{gallery}: holds embeddings; --save and --masks are for pictures")
    model = MGRAN.from_file(checkpoint, mra=common.open_estimator(mra)).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    made = told(checkpoint, sha256(checkpoint))
    if precision == "int8":
        raise DataError("--precision int8: takes pictures to calibrate on; take float32 or bfloat16")
    try:
        network = model if precision is None else optimize(model, precision)
    except ValueError as error:
        raise DataError(f"--precision {precision}: {error}") from None
    _, asked = find_pictures(query)
    problems: list[str] = []

    def embedded(text: str, pictures: list[Picture], files: Any) -> Embedded:
        with common.bar(text) as step:
            found = embed_pictures(network, pictures, files, batch_size=batch_size, workers=workers, progress=step)
        problems.extend(found.problems.lines())
        return found

    files = None
    if saved or extracted:
        held = Gallery.load(gallery) if saved else load_gallery(gallery)
        # By its digest: it may lie elsewhere now.
        if held.model.rpartition(" ")[2] != made.rpartition(" ")[2]:
            raise DataError(
                f"{gallery}: its embeddings are of {held.model or 'an unknown model'}, this is {made}; name that"
                " --checkpoint, or search the pictures again"
            )
    else:
        root, pictures = find_pictures(gallery)
        files = common.open_masks(root, masks, wanted=not model.layout.whole)
        held = gallery_of(pictures, embedded("gallery", pictures, files), model=made, root=root)
        if save is not None:
            held.save(save)
            common.console.print(f"gallery: {save}, {len(held)} pictures")
    questions = embedded("query", asked, None)
    try:
        found = held.search(
            questions.vectors, k, cameras=camera, not_cameras=not_camera or (), since=since, until=until,
            visible=questions.visible if visible else None,
        )  # fmt: skip
    except ValueError as error:
        raise DataError(f"{gallery}: {error}") from None
    mine = [asked[i] for i in questions.indices.tolist()]
    _tell(mine, found)
    views, theirs = Pictures(model, None), Pictures(model, files)
    compared = parts.of_search(held, questions, found, model.layout, visible=visible)
    lists = [
        FoundList(
            views.shown(one.path, one.name, one.person, one.camera, one.time),
            [
                theirs.shown(
                    Path(held.root) / entry.name,
                    entry.name,
                    entry.person,
                    entry.camera,
                    _time(entry),
                    entry.distance,
                    part,
                )
                for entry, part in zip(entries, explained, strict=True)
            ],
        )
        for one, entries, explained in zip(mine, found.entries, compared, strict=True)
    ]
    filters = _filters(camera, not_camera, since, until)
    path = write(
        output,
        SearchPage(
            title=f"Search for {mine[0].name}" if len(mine) == 1 else f"Search for {len(mine)} pictures",
            gallery="; ".join([f"{gallery}: {len(held)} pictures", *filters]),
            model=made,
            lists=lists,
            layout=model.layout.name,
            command=common.command(),
            problems=problems,
        ),
        blur_faces=blur_faces,
    )
    for line in problems:
        common.console.print(line, style="yellow")
    common.console.print(f"page: {path}")
    if json_:
        common.print_json(
            {
                "queries": [
                    {"name": one.name, "found": [_plain(entry) for entry in entries]}
                    for one, entries in zip(mine, found.entries, strict=True)
                ],
                "gallery": {"pictures": len(held), "saved": None if save is None else str(save)},
                "problems": problems,
                "page": str(path),
            }
        )


def _filters(
    cameras: list[str] | None, not_cameras: list[str] | None, since: str | None, until: str | None
) -> list[str]:
    told = [("by camera", cameras), ("not by camera", not_cameras)]
    found = [f"{text} {', '.join(names)}" for text, names in told if names]
    return found + [f"{text} {time}" for text, time in (("since", since), ("until", until)) if time]


def _tell(queries: list[Picture], found: Found) -> None:
    """A table for each query."""
    from rich.table import Table
    from rich.text import Text

    from mgran_fast.cli import common

    for one, entries in zip(queries, found.entries, strict=True):
        table = Table(title=Text(f"nearest to {one.name}"), title_justify="left")
        for column in ("", "picture", "person", "camera", "time", "distance"):
            table.add_column(column, justify="right" if column in ("", "distance") else "left")
        for place, entry in enumerate(entries, 1):
            known = (entry.person or "", entry.camera or "", _time(entry) or "")
            table.add_row(str(place), Text(entry.name), *map(Text, known), f"{entry.distance:.3f}")
        common.console.print(table)
        if not entries:
            common.console.print("nothing: no picture passes the filters", style="yellow")


def _time(entry: Entry) -> str | None:
    return None if entry.time is None else entry.time.isoformat(" ", "seconds")


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "person": entry.person,
        "camera": entry.camera,
        "time": None if entry.time is None else entry.time.isoformat(),
        "distance": entry.distance,
    }
