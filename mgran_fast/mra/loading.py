"""What fills a Mask R-CNN: torchvision's checkpoints and this library's own file."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from mgran_fast.mra.weights import Source, part, read_checkpoint, read_own, undescribed, widened, write

if TYPE_CHECKING:
    from mgran_fast.mra.maskrcnn import MaskRCNN

logger = logging.getLogger(__name__)

FORMAT, VERSION = "mgran_fast.MaskRCNN", 1


def load_torchvision(
    model: MaskRCNN, mask: Source | None, keypoints: Source | None, backbone: str | None, eps: float | None
) -> None:
    """See :meth:`mgran_fast.MaskRCNN.load_torchvision`."""
    sources = {role: source for role, source in (("mask", mask), ("keypoints", keypoints)) if source is not None}
    if not sources:
        raise ValueError("give mask=, keypoints= or both: a checkpoint file of torchvision, or a state dict")
    backbone = backbone or ("both" if len(sources) == 2 else next(iter(sources)))
    if backbone not in ("mask", "keypoints", "both"):
        raise ValueError(f'backbone must be "mask", "keypoints" or "both", not {backbone!r}')
    if len(sources) < 2 and backbone not in sources:
        raise ValueError(
            f"backbone={backbone!r} needs the other checkpoint as well; only {next(iter(sources))}= is given"
        )
    read_in = {role: read_checkpoint(source, role) for role, source in sources.items()}
    main = "mask" if backbone == "both" else backbone
    mine = model.state_dict()
    expected = {key: value for key, value in mine.items() if not key.startswith("keypoint_backbone.")}
    state = part(read_in[main], ("backbone.", "rpn."), expected, main)
    box = {key: value for key, value in read_in[main].state.items() if key.startswith("roi_heads.box_")}
    if main == "keypoints":
        box = widened(box, model.num_classes, model.person_label)
    state |= part(type(read_in[main])(read_in[main].name, box, 0.0), ("roi_heads.box_",), expected, main)
    for role, prefix in (("mask", "roi_heads.mask_"), ("keypoints", "roi_heads.keypoint_")):
        if role in read_in:
            state |= part(read_in[role], (prefix,), expected, role)
    second = part(read_in["keypoints"], ("backbone.",), expected, "keypoints") if backbone == "both" else {}
    # Everything fits: from here on nothing fails, so the module is never left half loaded.
    model.load_state_dict({**mine, **state}, strict=True)
    set_eps(model.backbone, read_in[main].eps if eps is None else eps)
    model.keypoint_backbone = None
    if second:
        model.add_keypoint_backbone(read_in["keypoints"].eps if eps is None else eps)
        model.load_state_dict({f"keypoint_{key}": value for key, value in second.items()}, strict=False)
    for role in ("mask", "keypoints"):
        if role not in sources:
            logger.warning("the %s head keeps the weights it had: no checkpoint of it was given", role)
        elif backbone not in ("both", role):
            logger.warning("the %s head was trained on another backbone: train it before you trust it", role)


def save(model: MaskRCNN, path: str | os.PathLike[str]) -> None:
    """See :meth:`mgran_fast.MaskRCNN.save`."""
    write(path, model.state_dict(), {"format": FORMAT, "version": VERSION, **description(model)})


def description(model: MaskRCNN) -> dict[str, Any]:
    """What a file says of a model beside its tensors."""
    return {
        "arguments": {
            **{name: getattr(model, name) for name in ("mode", "size", "num_classes", "person_label")},
            "backbone": model.backbone_name,
        },
        "eps": get_eps(model.backbone),
        "keypoint_eps": None if model.keypoint_backbone is None else get_eps(model.keypoint_backbone),
    }


def from_file(cls: type[MaskRCNN], path: str | os.PathLike[str]) -> MaskRCNN:
    """See :meth:`mgran_fast.MaskRCNN.from_file`."""
    tensors, metadata = read_own(path, "MaskRCNN", VERSION, "; see load_torchvision")
    # The weights are overwritten below: no reason to spend the caller's random numbers on them.
    with undescribed(path, "MaskRCNN"), torch.random.fork_rng(devices=()):
        arguments = dict(metadata["arguments"])
        if isinstance(arguments["size"], list):
            arguments["size"] = tuple(arguments["size"])
        model = cls(**arguments)
        set_eps(model.backbone, float(metadata["eps"]))
        if metadata["keypoint_eps"] is not None:
            model.add_keypoint_backbone(float(metadata["keypoint_eps"]))
        if dtypes := {t.dtype for t in tensors.values() if t.is_floating_point()}:
            model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)
        model.load_state_dict(tensors, strict=True)
    return model


def get_eps(backbone: nn.Module) -> float:
    return next(float(module.eps) for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d))


def set_eps(backbone: nn.Module, eps: float) -> None:
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps
