"""A gallery in a folder: what is known of the entries as Parquet, their embeddings as safetensors.

    entries.parquet                   name, person, camera, time; which file the embeddings are in
    embeddings-<token>.safetensors    embeddings float32 [N, D] and, where there is, visible uint8 [N, P]

The embeddings are written first, under a new name, and the entries, which name them, take the place of the old ones in
one step. So whoever reads finds two files that belong together, whenever a writer is killed.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mgran_fast.errors import DataError, MGRANError
from mgran_fast.weights import files

if TYPE_CHECKING:
    from mgran_fast.search.gallery import Gallery

ENTRIES, EMBEDDINGS = "entries.parquet", "embeddings-{}.safetensors"
FORMAT = 1
_KEY = b"mgran_fast gallery"


def save(gallery: Gallery, folder: Path) -> Path:
    """See :meth:`mgran_fast.Gallery.save`."""
    arrow, parquet = _pyarrow()
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    name = EMBEDDINGS.format(uuid.uuid4().hex[:12])
    about = {
        "format": FORMAT,
        "embeddings": name,
        "metric": gallery.metric,
        "model": gallery.model,
        "root": gallery.root,
    }
    columns = {
        "name": arrow.array(gallery.names, arrow.string()),
        "person": arrow.array(gallery.persons, arrow.string()).dictionary_encode(),
        "camera": arrow.array(gallery.cameras, arrow.string()).dictionary_encode(),
        "time": arrow.array(gallery.times, arrow.timestamp("us")).cast(arrow.timestamp("us", "UTC")),
    }
    table = arrow.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
    tensors = {"embeddings": gallery.embeddings.cpu().contiguous()}
    if gallery.visible is not None:
        tensors["visible"] = gallery.visible.cpu().to(torch.uint8).contiguous()
    size = sum(tensor.nbytes for tensor in tensors.values())
    target, partial = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
        before = set(folder.glob(EMBEDDINGS.format("*")))
        try:
            save_file(tensors, partial)
            files.put(partial, target)
            entries = folder / f".{ENTRIES}.partial"
            parquet.write_table(table, entries)
            files.put(entries, folder / ENTRIES)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            files.sweep(folder)
        for old in before:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(files.reason(error, target, size)) from None
    except SafetensorError as error:  # what it makes of a full disk
        raise DataError(f"{target}: cannot be written ({error})") from None
    return folder


def load(folder: Path, device: torch.device) -> Gallery:
    """See :meth:`mgran_fast.Gallery.load`."""
    arrow, parquet = _pyarrow()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from mgran_fast.search.gallery import Gallery

    file = folder / ENTRIES
    if not file.is_file():
        raise DataError(
            f"{folder}: no gallery, it has no {ENTRIES}; Gallery.save or mgran-fast search --save writes one"
        )
    try:
        table = parquet.read_table(file)
        about = _about(table.schema.metadata, file)
        names, persons, cameras = (table.column(name).to_pylist() for name in ("name", "person", "camera"))
        times = table.column("time").cast(arrow.timestamp("us")).to_numpy()
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{file}: cannot be read ({error}); write the gallery again") from None
    held = folder / about["embeddings"]
    try:
        tensors = load_file(held, device=str(device))
        embeddings, visible = tensors["embeddings"], tensors.get("visible")
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"{held}: cannot be read ({error}); write the gallery again") from None
    gallery = Gallery(metric=about["metric"], device=device, model=about["model"], root=about["root"])
    try:
        if embeddings.dtype != torch.float32 or embeddings.ndim != 2:
            raise ValueError(f"its embeddings are {embeddings.dtype} {list(embeddings.shape)}")
        gallery.take(embeddings, names, persons, cameras, times, visible)
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder}: {error}; write the gallery again") from None
    return gallery


def _about(metadata: dict[bytes, bytes] | None, file: Path) -> dict[str, Any]:
    try:
        about = json.loads((metadata or {})[_KEY])
        known = {name: str(about[name]) for name in ("embeddings", "metric", "model", "root")}
        version = int(about["format"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{file}: not the entries of a gallery; give a folder that Gallery.save wrote") from None
    if version != FORMAT:
        raise DataError(f"{file}: written in format {version}, this version reads {FORMAT}; update mgran_fast")
    if Path(known["embeddings"]).name != known["embeddings"]:
        raise DataError(f"{file}: its embeddings are not beside it; write the gallery again")
    return known


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MGRANError(
            "a gallery on disk takes pyarrow, which is not installed: pip install 'mgran_fast[search]'"
        ) from error
    return pyarrow, parquet
