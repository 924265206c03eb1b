"""MGRAN in FastReID's form (https://github.com/JDAI-CV/fast-reid): a meta-architecture and a predictor.

    from mgran_fast import FeatureExtractor
    from mgran_fast.integrations.fastreid import MetaArch, Predictor

    extractor = FeatureExtractor("runs/mine/model.safetensors")
    features = Predictor(extractor)(images)  # float [N, 3, H, W] in 0..255, RGB, as FastReID's DefaultPredictor
    fastreid.evaluation.inference_on_dataset(MetaArch(extractor), loader, evaluator)

FastReID 1.3 and 1.4 have the same interface here. FastReID itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mgran_fast.errors import MGRANError
from mgran_fast.extractor import FeatureExtractor


class MetaArch(nn.Module):
    """What FastReID's evaluation and predictor want of a trained model; in eval mode from the start.

    Pixels are taken as FastReID's loaders give them, 0 to 255, and are not changed; the model normalises them itself,
    so FastReID's PIXEL_MEAN and PIXEL_STD have no part in it. Crops of any size are resized to the model's.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.extractor.device

    def forward(self, batched_inputs: Mapping[str, Any] | torch.Tensor) -> torch.Tensor:
        """Embed people.

        Args:
            batched_inputs: float or uint8 [N, 3, H, W] in 0..255, RGB, or a mapping with these as "images".

        Returns:
            float32 [N, P * D], unit norm, on :attr:`device`.

        Raises:
            MGRANError: in train mode.
            TypeError: neither a mapping nor a tensor.
        """
        if self.training:
            raise MGRANError(
                "MGRAN is not trained by FastReID; mgran-fast train does it, or MGRAN in a loop of your own"
            )
        images = batched_inputs["images"] if isinstance(batched_inputs, Mapping) else batched_inputs
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"batched_inputs must be a dict or a torch.Tensor, not {type(images).__name__}")
        pixels = images.detach() if images.dtype == torch.uint8 else images.detach().round().clamp(0, 255)
        return self.extractor(pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous())


class Predictor:
    """Called as FastReID's ``DefaultPredictor`` is: images as for :class:`MetaArch` -> features on the CPU."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.model = MetaArch(extractor)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return self.model({"images": image}).cpu()  # type: ignore[no-any-return]
