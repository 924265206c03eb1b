"""What a region cache was made with: the estimator and its weights, layout, threshold, size and options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from mgran_fast import layouts
from mgran_fast.data.masks import MaskFiles
from mgran_fast.layouts import Layout
from mgran_fast.mra.estimate import Estimator


@dataclass(frozen=True)
class Provenance:
    """What a cache was made with. Two that are equal make equal caches of equal pictures.

    Attributes:
        estimator: the name of its class, or "files".
        sha256: of its weights (or of the mask files), in hex.
        layout, layout_digest: the name of the body layout, and a digest of its table.
        threshold: a pixel is foreground where its mask is at least this.
        keypoint_threshold: a keypoint with a lower score was not used.
        size: (height, width) of the maps and of the crops that the estimator saw, in pixels.
        options: whatever else changes the answer: arguments of the estimator, refinement.
    """

    estimator: str
    sha256: str
    layout: str
    layout_digest: str
    threshold: float
    keypoint_threshold: float
    size: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Raises ValueError, TypeError or KeyError for a text of anything else."""
        values = json.loads(text)
        return cls(**{**values, "size": (int(values["size"][0]), int(values["size"][1]))})

    def differences(self, other: Provenance) -> list[str]:
        """One line for each thing in which ``other`` differs, such as "threshold 0.5, not 0.4"."""
        mine, its = json.loads(self.to_json()), json.loads(other.to_json())
        return [f"{name} {_short(mine[name])}, not {_short(its[name])}" for name in mine if mine[name] != its[name]]


def layout_digest(layout: Layout) -> str:
    """BLAKE2b (8 bytes, in hex) of a layout's table: a custom layout may change and keep its name."""
    return hashlib.blake2b(repr(layout).encode(), digest_size=8).hexdigest()


def identity(estimator: Estimator | MaskFiles) -> tuple[str, str, dict[str, Any]]:
    """What tells an estimator from another: its name, a SHA-256 in hex, its arguments.

    The hash is over the weights, names and bytes of ``state_dict()`` by name (batch norm's counters left out, which
    change no answer); over the keypoint file and all masks for :class:`MaskFiles`. The arguments are those of its
    attribute ``arguments``, when it has one, values that JSON knows, and its ``REVISION``, which counts up when the
    same weights answer otherwise.

    Raises:
        TypeError: it is neither a module nor a MaskFiles, and has no ``state_dict``.
    """
    digest = hashlib.sha256()
    if isinstance(estimator, MaskFiles):
        # "**" alone passes by folders that are links.
        patterns = ("keypoints.json", "masks/**/*.png", "masks/*/*.png")
        for path in sorted({path for pattern in patterns for path in estimator.root.glob(pattern)}):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(estimator.root).as_posix()}\n{len(content)}\n".encode() + content)
        return "files", digest.hexdigest(), {}
    if not isinstance(estimator, nn.Module) and not hasattr(estimator, "state_dict"):
        raise TypeError(f"estimator must be a module or have a state_dict(), not {type(estimator).__name__}")
    for name, value in sorted(estimator.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            tensor = torch.as_tensor(value).detach().cpu().contiguous()
            digest.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    arguments = getattr(estimator, "arguments", None)
    told = dict(arguments) if isinstance(arguments, Mapping) else {}
    if (revision := getattr(estimator, "REVISION", None)) is not None:
        told["revision"] = revision
    return type(estimator).__name__, digest.hexdigest(), told


def provenance(
    estimator: Estimator | MaskFiles,
    *,
    size: tuple[int, int] = (256, 128),
    layout: str | Layout = "region",
    threshold: float = 0.5,
    keypoint_threshold: float = 0.3,
    options: Mapping[str, Any] | None = None,
) -> Provenance:
    """What a cache by this estimator is made with; :func:`mgran_fast.data.precompute.build` does as it says.

    Args:
        estimator: anything that :func:`identity` knows.
        size: (height, width) in pixels of the maps, and of the crops that the estimator is given.
        layout: a layout of which every foreground pixel is a person's: not "box" nor "none".
        threshold: a pixel is foreground where its mask is at least this, in [0, 1].
        keypoint_threshold: a keypoint with a lower score is not used.
        options: whatever else changes the answer, as values that JSON knows; the estimator's own arguments are there
            already.

    Raises:
        ValueError: a value is out of range. TypeError: see :func:`identity`.
    """
    layout = layouts.get(layout)
    if layout.whole or layout.rectangles:
        raise ValueError(
            f"layout {layout.name!r} cannot be cached, its maps do not tell the person from the background; "
            "cache 'region', from which it is made when it is read"
        )
    height, width = size
    if height < 1 or width < 1 or height * width > 1 << 26:
        raise ValueError(f"size must be (height, width) in pixels, 1 or more, at most 2**26 in all, not {size!r}")
    for name, value in (("threshold", threshold), ("keypoint_threshold", keypoint_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, not {value!r}")
    kind, sha256, arguments = identity(estimator)
    return Provenance(
        estimator=kind,
        sha256=sha256,
        layout=layout.name,
        layout_digest=layout_digest(layout),
        threshold=float(threshold),
        keypoint_threshold=float(keypoint_threshold),
        size=(height, width),
        # As JSON will give it back: a tuple would be a change.
        options=json.loads(json.dumps({**arguments, **(options or {})})),
    )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
