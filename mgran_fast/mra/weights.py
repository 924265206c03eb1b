"""Checkpoints of the Mask R-CNN estimator: torchvision's, read and checked, and this library's own file."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from mgran_fast.errors import CheckpointError

#: What ``load_torchvision`` accepts: a file, or the state dict itself.
Source = str | os.PathLike[str] | Mapping[str, torch.Tensor]

#: The torchvision model whose checkpoint plays each role.
MODELS = {"mask": "maskrcnn_resnet50_fpn", "keypoints": "keypointrcnn_resnet50_fpn"}
# torchvision's first keypoint checkpoint, the one it runs with the usual epsilon.
_LEGACY_KEYPOINTS = "9f466800"
# Modules that torchvision renamed after its checkpoints were published.
_RENAMED = (
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)$"), None),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        name: what error messages call it: the path, or ``the state dict for mask=``.
        state: the tensors under torchvision's present key names.
        eps: the epsilon of batch norm that the weights want.
    """

    name: str
    state: dict[str, torch.Tensor]
    eps: float


def find_checkpoints(folder: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """torchvision's COCO checkpoints that lie on this machine already; nothing is downloaded.

    Args:
        folder: where to look; by default ``checkpoints`` in torch.hub's cache folder.

    Returns:
        "mask" and "keypoints", each with its path; a role without a file is left out. The result fits
        ``MaskRCNN(weights=...)``. Of several files the last by name is taken, torchvision's legacy keypoint
        checkpoint only when it is alone.
    """
    root = Path(folder) if folder is not None else Path(torch.hub.get_dir()) / "checkpoints"
    found = {}
    for role, model in MODELS.items():
        paths = sorted(root.glob(f"{model}_coco-*.pth"), key=lambda path: (_LEGACY_KEYPOINTS not in path.name, path))
        if paths:
            found[role] = paths[-1]
    return found


def read_checkpoint(source: Source, role: str) -> Checkpoint:
    """Read a torchvision detection checkpoint.

    torchvision trained its COCO_V1 weights at a time when frozen batch norm added no epsilon, and sets it to 0 when
    it loads them; the same is done here. It is 1e-5 for torchvision's legacy keypoint checkpoint and for state dicts
    with ``num_batches_tracked``, which come from ordinary batch norm.

    Args:
        source: a .pth or .safetensors file, or a state dict. A file that holds ``{"model": state dict, ...}``, as
            torchvision's training scripts write it, is unwrapped.
        role: "mask" or "keypoints", for messages.

    Raises:
        CheckpointError: there is no such file, or it holds no state dict.
        TypeError: ``source`` is none of these.
    """
    content: Mapping[str, Any]
    if isinstance(source, Mapping):
        name, content = f"the state dict for {role}=", source
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        name, content = str(path), _read_file(path)
    else:
        raise TypeError(f"{role} must be a path or a state dict, not {type(source).__name__}")
    wrapped = content.get("model")
    if isinstance(wrapped, Mapping):
        content = wrapped
    if not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise CheckpointError(f"{name} holds no state dict; a checkpoint of torchvision's {MODELS[role]} is expected")
    state, plain_batchnorm = {}, False
    for key, value in content.items():
        if key.endswith("num_batches_tracked"):
            plain_batchnorm = True
        else:
            state[_present_name(key)] = value
    legacy = isinstance(source, str | os.PathLike) and _LEGACY_KEYPOINTS in Path(source).name
    return Checkpoint(name, state, 1e-5 if plain_batchnorm or legacy else 0.0)


def _present_name(key: str) -> str:
    for pattern, replacement in _RENAMED:
        if replacement is not None:
            key = pattern.sub(replacement, key)
        elif match := pattern.search(key):
            # mask_fcn1 became 0.0: counted from 0, and a convolution inside a block.
            key = f"{match[1]}.{int(match[2]) - 1}.0.{match[3]}"
    return key


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a checkpoint that is on this machine")
    if path.suffix == ".safetensors":
        return read(path)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint fail in many ways
        raise CheckpointError(f"{path} is not a checkpoint that can be read without running code from it") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a state dict is expected")
    return content


def part(
    checkpoint: Checkpoint, prefixes: tuple[str, ...], expected: Mapping[str, torch.Tensor], role: str
) -> dict[str, torch.Tensor]:
    """The tensors of ``checkpoint`` under ``prefixes``, which must be those of ``expected``, key by key.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape.
    """
    chosen = {key: value for key, value in checkpoint.state.items() if key.startswith(prefixes)}
    wanted = {key: value for key, value in expected.items() if key.startswith(prefixes)}
    said = f"{checkpoint.name} does not fit torchvision's {MODELS[role]}:"
    missing, unexpected = sorted(wanted.keys() - chosen.keys()), sorted(chosen.keys() - wanted.keys())
    if missing:
        raise CheckpointError(f"{said} {len(missing)} tensors are missing, {missing[0]} first")
    if unexpected:
        raise CheckpointError(f"{said} {len(unexpected)} tensors are not known to it, {unexpected[0]} first")
    for key, value in chosen.items():
        if value.shape != wanted[key].shape:
            hint = "; num_classes must be the checkpoint's" if "predictor" in key else ""
            shapes = f"{list(value.shape)}, expected is {list(wanted[key].shape)}"
            raise CheckpointError(f"{said} {key} is {shapes}{hint}")
    return chosen


def widened(box: dict[str, torch.Tensor], num_classes: int, person: int) -> dict[str, torch.Tensor]:
    """The box head of a detector of background and person as one with ``num_classes`` classes.

    The two classes keep their logits; the others get a probability of 0. Any other head is returned as it is.
    """
    predictor = {
        (name, kind): box.get(f"roi_heads.box_predictor.{name}.{kind}")
        for name in ("cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
    rows = {"cls_score": 1, "bbox_pred": 4}
    wide = dict(box)
    for (name, kind), two in predictor.items():
        if num_classes == 2 or two is None or two.dim() == 0 or len(two) != 2 * rows[name]:
            return box
        # -10000 is a probability of 0 and still a float16.
        other = -1e4 if (name, kind) == ("cls_score", "bias") else 0.0
        by_class = two.reshape(2, rows[name], *two.shape[1:])
        all_ = by_class.new_full((num_classes, *by_class.shape[1:]), other)
        all_[0], all_[person] = by_class[0], by_class[1]
        wide[f"roi_heads.box_predictor.{name}.{kind}"] = all_.flatten(0, 1)
    return wide


def write(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file with JSON metadata under the key ``mgran_fast``.

    The file appears whole or not at all: it is written beside its place and then renamed. The folder must exist.
    """
    path = Path(path)
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    content = serialize(plain, metadata={"mgran_fast": json.dumps(dict(metadata), sort_keys=True)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the JSON metadata of a safetensors file; no metadata is an empty dict.

    Raises:
        CheckpointError: there is no such file, it is no safetensors file, or its metadata is not a JSON object.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        return tensors, _metadata(path, file)


def read_format(path: str | os.PathLike[str]) -> str:
    """What a safetensors file of this library holds: the format that its writer named; empty for files of others.

    Raises CheckpointError as :func:`read` does; no tensor is read.
    """
    with _opened(path) as file:
        return str(_metadata(path, file).get("format", ""))


def read_own(
    path: str | os.PathLike[str], kind: str, version: int, hint: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """:func:`read` of a file whose metadata must name the format ``mgran_fast.<kind>`` in this version.

    Args:
        hint: what the error for another file ends with.

    Raises:
        CheckpointError: as :func:`read`, or the format or its version is another one.
    """
    tensors, metadata = read(path)
    if metadata.get("format") != f"mgran_fast.{kind}":
        raise CheckpointError(f"{os.fspath(path)} was not written by {kind}.save{hint}")
    if metadata.get("version") != version:
        found = metadata.get("version")
        raise CheckpointError(f"{os.fspath(path)} has format version {found}; this release reads {version}")
    return tensors, metadata


@contextmanager
def undescribed(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn what goes wrong in making a module from a file's tensors and metadata into one CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{os.fspath(path)} does not describe a {kind}: {reason}") from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    if not Path(path).is_file():
        raise CheckpointError(f"{os.fspath(path)}: no such file; give the path of a checkpoint that is on this machine")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{os.fspath(path)} is not a complete safetensors file") from error


def _metadata(path: str | os.PathLike[str], file: Any) -> dict[str, Any]:
    try:
        metadata = json.loads((file.metadata() or {}).get("mgran_fast", "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{os.fspath(path)}: its metadata is not JSON") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{os.fspath(path)}: its metadata is not a JSON object")
    return metadata
