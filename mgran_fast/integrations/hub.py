"""Checkpoints with a model card: in a folder, and on the Hugging Face hub.

What :meth:`mgran_fast.MGRAN.from_pretrained`, ``save_pretrained`` and ``push_to_hub`` do. A repository holds
``model.safetensors``, as :meth:`mgran_fast.MGRAN.save` writes it, and ``README.md``, the card. Folders need no further
package, the hub needs huggingface_hub. Nothing that is read can run code.
"""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mgran_fast.errors import CheckpointError, MGRANError
from mgran_fast.integrations.card import card
from mgran_fast.mra.estimate import Estimator
from mgran_fast.weights import files
from mgran_fast.weights.checkpoint import load

if TYPE_CHECKING:
    from mgran_fast.model import MGRAN

WEIGHTS, CARD = "model.safetensors", "README.md"
#: "owner/name" as the hub has it.
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def save(
    model: MGRAN, folder: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None, license: str = "unknown"
) -> None:
    """Write the weights and, where there is none yet, a card. See :meth:`mgran_fast.MGRAN.save_pretrained`."""
    place = Path(folder)
    # Before anything is written: it checks what it is given.
    text = card(model, None, notes or {}, license)
    model.save(place / WEIGHTS, notes=notes)
    if not (place / CARD).exists():
        files.write(place / CARD, text.encode())


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    mra: Estimator | None = None,
) -> MGRAN:
    """The model of a folder or of the hub. See :meth:`mgran_fast.MGRAN.from_pretrained`."""
    if Path(name).is_dir():
        return load(Path(name) / WEIGHTS, mra=mra)
    text = os.fspath(name)
    if not NAME.fullmatch(text):
        raise CheckpointError(f"{text}: neither a folder nor the name of a model on the hub, which is owner/name")
    hub = _hub()
    try:
        path = hub.hf_hub_download(
            text,
            WEIGHTS,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            library_name="mgran_fast",
        )
    except _failures(hub) as error:
        raise CheckpointError(f"{text}: no folder, and not to be had from the hub: {_first(error)}") from error
    return load(path, mra=mra)


def push(
    model: MGRAN,
    name: str,
    *,
    notes: Mapping[str, str] | None = None,
    license: str = "unknown",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str = "Upload MGRAN",
) -> str:
    """Upload weights and card. See :meth:`mgran_fast.MGRAN.push_to_hub`."""
    if not NAME.fullmatch(name):
        raise MGRANError(f"{name}: the name of a model on the hub is owner/name")
    text = card(model, name, notes or {}, license)
    hub = _hub()
    api = hub.HfApi(token=token, library_name="mgran_fast")
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / WEIGHTS, notes=notes)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            # A card that somebody has edited stays as it is.
            if not api.file_exists(name, CARD, revision=revision):
                (Path(folder) / CARD).write_text(text, encoding="utf-8")
            commit = api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
        except _failures(hub) as error:
            raise MGRANError(
                f"{name}: not uploaded: {_first(error)}; log in with `hf auth login`, or pass a token that may write"
            ) from error
    return str(commit.commit_url)


def _failures(hub: ModuleType) -> tuple[type[Exception], ...]:
    """What its calls raise: the errors of its HTTP client are not all OSError."""
    return OSError, ValueError, *hub.errors.HfHubHTTPError.__bases__


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MGRANError(
            "the hub takes huggingface_hub, which is not installed: pip install 'mgran_fast[hub]'"
        ) from error
    return huggingface_hub


def _first(error: Exception) -> str:
    """The hub's words in one line."""
    return textwrap.shorten(str(error), 300)
