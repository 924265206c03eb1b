"""MGRAN checkpoints. Nothing here unpickles: a file from a stranger can be opened."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from mgran_fast.errors import CheckpointError
from mgran_fast.mra.estimate import Estimator
from mgran_fast.weights import files

if TYPE_CHECKING:
    from mgran_fast.model import MGRAN

FORMAT = "mgran_fast.MGRAN/1"


def save(model: MGRAN, path: str | PathLike[str], *, notes: Mapping[str, str] | None = None) -> None:
    """Write MA's weights and ``model.config``. A reader never sees a half-written file.

    Args:
        notes: further plain strings to keep (data set, epoch, command).
    """
    metadata = {"format": FORMAT, "config": json.dumps(model.config), "notes": json.dumps(dict(notes or {}))}
    # safetensors keeps no strides: a channels_last weight is written in the standard order and converted on load.
    tensors = {key: value.contiguous() for key, value in model.ma.state_dict().items()}
    files.write(Path(path), _serialized(tensors, metadata))


def _serialized(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file, the same for the same weights."""
    content = serialize(tensors, metadata)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    # The library leaves the order of the metadata to chance.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]))


def describe(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(config, notes) of a checkpoint. Raises CheckpointError when there is none that we can read."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; mgran-fast train writes one as model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({error}); pass the model.safetensors of a run"
        ) from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: no MGRAN checkpoint: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    try:
        return dict(json.loads(metadata["config"])), dict(json.loads(metadata["notes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its configuration is damaged ({error!r}); take another copy") from None


def load(
    path: str | PathLike[str],
    *,
    mra: Estimator | None = None,
    layout: str | None = None,
    num_classes: int | None = None,
) -> MGRAN:
    """The model that ``save`` wrote, in eval mode, on the CPU.

    Args:
        mra: the estimator to give to it.
        layout, num_classes: what the caller relies on.

    Raises:
        CheckpointError: no such file, no checkpoint, weights that do not fit, another layout or class count.
    """
    from mgran_fast.model import MGRAN

    config, _ = describe(path)
    for name, want in (("layout", layout), ("num_classes", num_classes)):
        if want is not None and config.get(name) != want:
            raise CheckpointError(
                f"{path}: made with {name}={config.get(name)!r}, wanted {name}={want!r};"
                f" leave {name} out or take another checkpoint"
            )
    try:
        # The weights are overwritten below: no reason to spend the caller's random numbers on them.
        with torch.random.fork_rng(devices=()):
            model = MGRAN(mra=mra, **{**config, "size": tuple(config["size"])})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: this version cannot build its model: {error}") from None
    with safe_open(Path(path), framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    try:
        model.ma.load_state_dict(state)
    except RuntimeError as error:
        # torch lists every key on lines of its own; the first few say enough.
        reason = textwrap.shorten(str(error), 200)
        raise CheckpointError(f"{path}: its weights do not fit its own configuration: {reason}") from None
    return model.eval()
