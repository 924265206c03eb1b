"""MRA: masks and keypoints of crops, by this library's estimators and by torchvision's two stock detectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from mgran_fast.bench import peers
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, no_grad
from mgran_fast.mra.maskrcnn import MaskRCNN

STOCK = "torchvision's two detectors"
JOINT, JOINT_HALF = "ours, joint Mask R-CNN", "ours, joint Mask R-CNN, bfloat16"


def cases(sizes: Sizes, *, quick: bool) -> list[Case]:
    """Some crops at once; and a few with the detectors, which take seconds for each and have the pipeline as well."""
    ours = (OURS, JOINT, JOINT_HALF)
    found = [Case("MRA", "masks and keypoints", ours, estimators(sizes.people), {"people": sizes.people})]
    if not quick:
        few = sizes.one_by_one
        found.append(Case("MRA", "masks and keypoints", (*ours, STOCK), estimators(few), {"people": few},
                          rounds=(0, 3, 3)))  # fmt: skip
    return found


def estimators(people: int) -> Callable[[Setting, Sequence[str]], Prepared]:
    """The model's own estimator is ours. The others have random weights, on which no speed here depends."""

    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        crops = setting.people(people)[0]
        joint = setting.once("joint", lambda: _joint(setting.device))
        half = setting.once("joint, bfloat16", lambda: copy.deepcopy(joint).bfloat16())
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: setting.model.estimate(crops),
            JOINT: lambda: joint(crops),
            JOINT_HALF: lambda: half(crops),
        }
        if STOCK in names:
            ways[STOCK] = stock(setting, crops)
        # Weights that were drawn find nobody in particular: there is nothing to compare.
        return Prepared({name: no_grad(run) for name, run in ways.items() if name in names}, None, people)

    return make


def stock(setting: Setting, crops: torch.Tensor) -> Callable[[], object]:
    """Crop after crop: several at 800 x 1333 together need gigabytes and are no faster."""
    size = setting.sizes.detector
    both = setting.once("detectors", lambda: [one.to(setting.device) for one in peers.detectors(size)])
    images = [crop.permute(2, 0, 1).float() / 255 for crop in crops]
    return lambda: [detector([image]) for detector in both for image in images]


def _joint(device: torch.device) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN().eval().to(device)
