"""What the tests of Mask R-CNN share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from mgran_fast.mra.maskrcnn import MaskRCNN


@pytest.fixture(scope="session")
def narrow() -> Callable[[MaskRCNN], MaskRCNN]:
    """Gives a model narrow box and keypoint heads: layers of the same kinds, a tenth of the work.

    The published ones have most of the weights of a detector on a ResNet-18, and most of a test's time.
    """
    return _narrow


def _narrow(model: MaskRCNN) -> MaskRCNN:
    heads: Any = model.roi_heads
    heads.box_head = TwoMLPHead(model.backbone.out_channels * 7 * 7, 64)
    heads.box_predictor = FastRCNNPredictor(64, model.num_classes)
    heads.keypoint_head = KeypointRCNNHeads(model.backbone.out_channels, (64, 64))
    heads.keypoint_predictor = KeypointRCNNPredictor(64, 17)
    return model.to(memory_format=torch.channels_last).eval()
