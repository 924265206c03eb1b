"""Embeddings of ``supervision.Detections`` (https://supervision.roboflow.com).

from mgran_fast import FeatureExtractor
from mgran_fast.integrations.supervision import embed

detections = embed(FeatureExtractor("runs/mine/model.safetensors"), frame, detections)
detections.data["embedding"], detections.data["visible"]
detections[detections.confidence > 0.5].data["embedding"]  # they follow every selection
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mgran_fast.extractor import FeatureExtractor
from mgran_fast.integrations import frames
from mgran_fast.metrics.embedding import read_size

D = TypeVar("D", bound=Any)


def embed(
    extractor: FeatureExtractor, frame: npt.NDArray[np.uint8], detections: D, *, bgr: bool = True, masks: bool = False
) -> D:
    """The same detections with embeddings in ``data``; what was given is not changed.

    Args:
        frame: uint8 [H, W, 3].
        detections: supervision's ``Detections`` of N people.
        bgr: whether the frame is blue first, as OpenCV and supervision read it; False for RGB.
        masks: let ``detections.mask`` say which pixels are the person's. Keypoints are the extractor's estimator's all
            the same.

    Returns:
        Detections with ``data["embedding"]``, float32 [N, D] of unit norm, and ``data["visible"]``, bool [N, P].

    Raises TypeError or ValueError for another dtype or shape, and where masks are wanted and there are none.
    """
    boxes = torch.as_tensor(np.asarray(detections.xyxy, dtype=np.float32)).reshape(-1, 4)
    shown = None
    if masks and len(boxes):
        if detections.mask is None:
            raise ValueError("the detections have no masks: take a model that segments, or masks=False")
        shown = frames.cut_masks(np.asarray(detections.mask), boxes, read_size(extractor.alignment))
    vectors, visible = frames.embed(extractor, frames.cut(extractor, frame, boxes, bgr=bgr), shown)
    added = {"embedding": vectors.cpu().numpy(), "visible": visible.cpu().numpy()}
    return dataclasses.replace(detections, data={**detections.data, **added})
