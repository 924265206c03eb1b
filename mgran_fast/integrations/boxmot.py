"""MGRAN as the appearance model of BoxMOT's trackers (https://github.com/mikel-brostrom/boxmot).

    from boxmot import BotSort
    from mgran_fast import FeatureExtractor
    from mgran_fast.integrations.boxmot import ReID

    tracker = BotSort(reid_model=ReID(FeatureExtractor("runs/mine/model.safetensors")))
    tracks = tracker.update(detections, frame)  # as ever: [N, 6] and a BGR frame

Written against the interface of BoxMOT 25; :meth:`ReID.get_features` alone is what older versions ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mgran_fast.errors import MGRANError
from mgran_fast.extractor import FeatureExtractor
from mgran_fast.integrations.frames import cut, cut_masks, embed
from mgran_fast.metrics.embedding import read_size


class ReID:
    """BoxMOT's two forms of an appearance model in one: ``get_features`` and the protocol ``AppearanceEncoder``.

    A box may lie partly or wholly outside of the frame: what is outside is black, and a crop that shows nobody is
    embedded as a whole crop without a visible region. No vector is ever 0, which BoxMOT would refuse.

    Args:
        extractor: what embeds.
        masks: ask for instance masks, and let them say which pixels are the person's (:meth:`encode`). Of two people
            in one box, RegionNet takes the one who fills it best; a detector's mask is always of its own detection.
            Keypoints are still RegionNet's, so this saves no time.
    """

    def __init__(self, extractor: FeatureExtractor, *, masks: bool = False) -> None:
        self.extractor, self.masks = extractor, masks

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.extractor.device

    @property
    def input_shape(self) -> tuple[int, int]:
        """(height, width) of the crops that are cut out."""
        return read_size(self.extractor.alignment)

    @property
    def embedding_dim(self) -> int:
        """P * D, the length of an embedding."""
        return self.extractor.dim

    @property
    def requirements(self) -> Any:
        """BoxMOT's ``EncoderRequirements``. Raises MGRANError where BoxMOT 25 is not installed."""
        try:
            from boxmot.reid import EncoderRequirements
        except ImportError as error:
            raise MGRANError("BoxMOT's encoder protocol needs BoxMOT 25: pip install 'boxmot>=25'") from error
        return EncoderRequirements(masks=self.masks)

    def get_features(self, boxes: Any, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed the people of a frame.

        Args:
            boxes: [N, 4] left, top, right, bottom in pixels, or BoxMOT's rows of 6 or 8 numbers that begin so; or
                oriented boxes, rows of 5, 7 or 9 that begin with centre, width, height and angle in radians.
            frame: uint8 [H, W, 3], BGR.

        Returns:
            float32 [N, D], unit norm.

        Raises TypeError or ValueError for another dtype or shape.
        """
        return self._embed(cut(self.extractor, frame, corners(boxes), bgr=True)).numpy()

    def encode(self, frames: Sequence[Any], detections: Sequence[Any]) -> list[torch.Tensor]:
        """Embed the people of several frames.

        Args:
            frames: BoxMOT's ``Frame``, whose ``image`` is uint8 [3, H, W], RGB.
            detections: BoxMOT's ``Detections`` for each, with ``geometry.values``, boxes float32 [N, 4] or oriented
                ones [N, 5], and, where they were asked for, ``masks.values``, bool [N, H, W].

        Returns:
            For each frame float32 [N, D] on the CPU, unit norm.

        Raises ValueError for sequences of different lengths, and where masks were asked for and are not there.
        """
        if len(frames) != len(detections):
            raise ValueError(f"{len(frames)} frames and {len(detections)} detections: give one for each frame")
        boxes = [corners(one.geometry.values) for one in detections]
        if not boxes:
            return []
        pictures = [frame.image.permute(1, 2, 0) for frame in frames]
        crops = [cut(self.extractor, *one, bgr=False) for one in zip(pictures, boxes, strict=True)]
        masks = [self._shown(*one) for one in zip(detections, boxes, strict=True)] if self.masks else None
        vectors = self._embed(torch.cat(crops), None if masks is None else torch.cat(masks))
        return [part.contiguous() for part in vectors.split([len(some) for some in boxes])]

    def _embed(self, crops: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [N, D] on the CPU."""
        vectors = embed(self.extractor, crops, masks)[0].cpu()
        # BoxMOT divides by the norm, and a network without shifts (an untrained one) answers 0 to black.
        return torch.where(vectors.any(1, keepdim=True), vectors, self.embedding_dim**-0.5)

    def _shown(self, detections: Any, boxes: torch.Tensor) -> torch.Tensor:
        if not len(boxes):
            return torch.zeros((0, *self.input_shape), dtype=torch.uint8)
        if detections.masks is None:
            raise ValueError("masks were asked for, and the detections have none: add a segmentor, or masks=False")
        return cut_masks(detections.masks.values, boxes, self.input_shape)


def corners(boxes: Any) -> torch.Tensor:
    """BoxMOT's rows of boxes -> float32 [N, 4], left, top, right, bottom; an oriented box becomes the one around it."""
    rows = torch.as_tensor(np.asarray(boxes, dtype=np.float32))
    if not rows.numel():
        return torch.zeros((0, 4))
    if rows.ndim != 2 or not 4 <= rows.shape[1] <= 9:
        raise ValueError(
            f"boxes must be [N, 4], [N, 6], [N, 8], or oriented [N, 5], [N, 7], [N, 9], not {list(rows.shape)}"
        )
    if rows.shape[1] % 2 == 0:
        return rows[:, :4].contiguous()
    centre, (width, height, angle) = rows[:, :2], rows[:, 2:5].unbind(1)
    cosine, sine = angle.cos().abs(), angle.sin().abs()
    half = torch.stack((width * cosine + height * sine, width * sine + height * cosine), 1) / 2
    return torch.cat((centre - half, centre + half), 1)
