"""The Parquet files of an extraction: their columns, writing one, reading all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgran_fast.errors import DataError
from mgran_fast.extraction.plan import FOLDER, SETTINGS, Plan, pyarrow
from mgran_fast.search.columns import moments
from mgran_fast.search.gallery import Gallery
from mgran_fast.search.pictures import Picture
from mgran_fast.weights import files

_KEY = b"mgran_fast extraction"


@dataclass(frozen=True)
class Rows:
    """What a part holds.

    Attributes:
        pictures: those that could be read.
        vectors: float32 [N, P * D], unit norm.
        visible: bool [N, P].
        no_person: bool [N], an empty mask, or a presence below 0.5.
        problems: one line for each picture that could not be read.
    """

    pictures: Sequence[Picture]
    vectors: torch.Tensor
    visible: torch.Tensor
    no_person: torch.Tensor
    problems: Sequence[str]


def columns(dim: int, parts: int) -> Any:
    """The schema of a part: an Arrow schema.

    ``path`` is the path below the folder of pictures, ``time`` in UTC, ``embedding`` has unit norm, ``visible`` says of
    each part of the body whether the picture shows it, ``no_person`` that it likely shows nobody, and ``model`` is the
    SHA-256 of the model's file in hex.
    """
    arrow = pyarrow()
    label = arrow.dictionary(arrow.int32(), arrow.string())
    return arrow.schema(
        [
            ("path", arrow.string()),
            ("person", label),
            ("camera", label),
            ("time", arrow.timestamp("us", "UTC")),
            ("embedding", arrow.list_(arrow.float32(), dim)),
            ("visible", arrow.list_(arrow.bool_(), parts)),
            ("no_person", arrow.bool_()),
            ("model", label),
        ]
    )


def write(plan: Plan, number: int, rows: Rows, layout: str, parts: Sequence[str]) -> None:
    """Write a part; it appears whole. Raises DataError where it cannot be written."""
    arrow = pyarrow()
    count = len(rows.pictures)
    schema = columns(rows.vectors.shape[1], rows.visible.shape[1])
    values = {
        "path": [one.name for one in rows.pictures],
        "person": [one.person for one in rows.pictures],
        "camera": [one.camera for one in rows.pictures],
        "time": moments([one.time for one in rows.pictures]),
        "embedding": rows.vectors.numpy(),
        "visible": rows.visible.numpy(),
        "no_person": rows.no_person.numpy(),
        "model": [plan.settings.sha256] * count,
    }
    arrays = [_array(arrow, values[field.name], field.type) for field in schema]
    about = {
        "format": 1,
        "model": plan.settings.model,
        "root": plan.settings.root,
        "precision": plan.settings.precision,
        "mra": plan.settings.mra,
        "layout": layout,
        "parts": list(parts),
        "problems": list(rows.problems),
    }
    table = arrow.Table.from_arrays(arrays, schema=schema.with_metadata({_KEY: json.dumps(about)}))
    sink = arrow.BufferOutputStream()
    labels = [field.name for field in schema if arrow.types.is_dictionary(field.type)]
    # Embeddings look like noise to whatever compresses.
    arrow.parquet.write_table(table, sink, use_dictionary=labels, compression="zstd", compression_level=1)
    content = sink.getvalue()
    path = plan.file(number)
    try:
        files.write(path, memoryview(content))
    except OSError as error:
        raise DataError(files.reason(error, path, content.size)) from None


def problems(plan: Plan) -> dict[int, list[str]]:
    """The pictures that could not be read, of each part that has any; one line each."""
    found = {}
    missing = set(plan.missing())
    for number in range(len(plan)):
        lines = [] if number in missing else _about(plan.file(number))["problems"]
        if lines:
            found[number] = [str(line) for line in lines]
    return found


def names(file: Path) -> set[str]:
    """The paths of a part's rows. Raises DataError where it cannot be read."""
    with _reading(file) as parquet:
        return set(parquet.read_table(file, columns=["path"]).column("path").to_pylist())


def is_extraction(folder: Path) -> bool:
    """Whether an extraction was begun in a folder."""
    return (folder / FOLDER / SETTINGS).is_file()


def load_gallery(folder: str | os.PathLike[str]) -> Gallery:
    """All that an extraction has written so far, to be searched. Raises DataError, or MGRANError without pyarrow."""
    arrow, output = pyarrow(), Path(folder)
    plan = Plan.opened(output)
    if plan is None:
        raise DataError(f"{output}: nothing that mgran-fast extract wrote")
    missing = set(plan.missing())
    gallery = Gallery(model=plan.settings.model, root=plan.settings.root)
    for number in range(len(plan)):
        if number in missing:
            continue
        file = plan.file(number)
        with _reading(file) as parquet:
            table = parquet.read_table(file).combine_chunks()
            vectors, visible = (_matrix(table.column(name)) for name in ("embedding", "visible"))
            names, persons, cameras = (table.column(name).to_pylist() for name in ("path", "person", "camera"))
            times = table.column("time").cast(arrow.timestamp("us")).to_numpy()
        gallery.add(vectors, names, persons=persons, cameras=cameras, times=times, visible=visible)
    return gallery


def _array(arrow: Any, values: Any, kind: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1), kind.value_type), kind.list_size)
    if arrow.types.is_timestamp(kind):
        return arrow.array(values, arrow.timestamp("us")).cast(kind)
    if arrow.types.is_dictionary(kind):
        return arrow.array(values, kind.value_type).dictionary_encode().cast(kind)
    return arrow.array(values, kind)


def _matrix(column: Any) -> torch.Tensor:
    """A column of lists of one length as [N, length]."""
    if not len(column):
        return torch.zeros((0, column.type.list_size))
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat = whole.flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(flat)).reshape(len(whole), -1)


def _about(file: Path) -> dict[str, Any]:
    with _reading(file) as parquet:
        about: dict[str, Any] = json.loads(parquet.read_schema(file).metadata[_KEY])
    return about


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """pyarrow's parquet, to read a part with. Raises DataError where that fails."""
    arrow = pyarrow()
    try:
        yield arrow.parquet
    except (arrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); remove it and run mgran-fast extract again") from None
