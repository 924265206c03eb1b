"""Estimators by name."""

from __future__ import annotations

from pathlib import Path

import torch

from mgran_fast.errors import DataError
from mgran_fast.mra.estimate import Estimator
from mgran_fast.mra.maskrcnn import MaskRCNN, find_checkpoints
from mgran_fast.mra.regionnet import RegionNet
from mgran_fast.mra.weights import read_format


def open_estimator(mra: str = "regionnet") -> Estimator:
    """The estimator of a name, as the command line's ``--mra`` gives it.

    Args:
        mra: "regionnet" for the one that comes with the package, "regionnet+flip" for the mean of its answers to a
            crop and to the mirror image, "torchvision" for the joint Mask R-CNN with torchvision's COCO weights where
            they lie, or a file that RegionNet.save or MaskRCNN.save wrote.

    Raises DataError or CheckpointError.
    """
    if mra in ("regionnet", "regionnet+flip"):
        return RegionNet.from_pretrained(flip=mra != "regionnet")
    if mra != "torchvision":
        return RegionNet.from_file(mra) if read_format(mra) == RegionNet.FORMAT else MaskRCNN.from_file(mra)
    found = find_checkpoints()
    if set(found) != {"mask", "keypoints"}:
        raise DataError(
            "--mra torchvision: torchvision's COCO weights of maskrcnn_resnet50_fpn and keypointrcnn_resnet50_fpn are"
            f" not both in {Path(torch.hub.get_dir()) / 'checkpoints'}; put the .pth files there, or name a file"
        )
    return MaskRCNN(weights=found)
