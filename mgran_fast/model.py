"""MGRAN = MRA + MA: a module from pictures of people to embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import nn

from mgran_fast import layouts, ops
from mgran_fast.alignment import Alignment, Packaged, as_bytes, resize
from mgran_fast.layouts import Layout
from mgran_fast.ma import MA, MAOutput, concatenate
from mgran_fast.ma.cuts import Cut, cut
from mgran_fast.mra.estimate import Estimate, Estimator
from mgran_fast.ops.inputs import channels


class Encoding(NamedTuple):
    """N people in eval mode: embeddings float32 [N, P, D] and visible bool [N, P]; ``vector`` is ranked."""

    embeddings: torch.Tensor
    visible: torch.Tensor

    @property
    def vector(self) -> torch.Tensor:
        """float32 [N, P * D], unit norm (:func:`mgran_fast.ma.concatenate`)."""
        return concatenate(self.embeddings, self.visible)


class MGRAN(nn.Module):
    """Mask-Guided Region Attention Network for person re-identification (Zhou & Yu, PAKDD 2020).

    A crop's mask is binarized, its foreground shared out among body regions, and the whole person and each
    region become P = 1 + R aligned inputs of one ResNet. Each input's features are pooled under its own region.

    In eval mode the model returns float32 [N, P * D] of unit norm (D = 2048 for ResNet-50); in train mode an
    :class:`~mgran_fast.ma.MAOutput` for the losses. Nothing back-propagates into the estimator of masks.

    Args:
        num_classes: number of training identities; 0 for a model that is only ever evaluated.
        layout: body layout: region (head, upper body, lower body), part, box, none, or one of your own.
        shape: "full": every input is a full frame with its background at 0, as published. "crop": each region is cut
            out and resized to a smaller frame of its own (:attr:`region_sizes`). "single": one pass of the trunk over
            the whole person, the regions only in the pooling.
        mra: estimator of masks and keypoints, used for crops that come without. None is the
            :class:`mgran_fast.RegionNet` that comes with the package, loaded when it is first needed; it is no
            submodule then, so parameters and state dict are MA's alone.
        size: (H, W) that crops are resized to.
        trunk: name of the shared trunk (:data:`mgran_fast.ma.TRUNKS`).
        last_stride: stride of the trunk's last stage.
        statistics: of batch norm in training, over the batch of all inputs (joint) or each input apart
            (per_input, exactly what P calls of one shared network do).
        pooling: mean, max or gem.
        scale: what pixels (0..255) are multiplied by: 1/256, as published.
        mean, std: (scale * pixel - mean) / std, one number a channel; 0 and 1 when not given, as published.
            Weights pretrained on ImageNet want (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
        threshold: masks are binarized here: 0.5, as published.
        keypoint_threshold: lowest score of a usable keypoint.
    """

    def __init__(
        self,
        num_classes: int = 0,
        layout: str | Layout = "region",
        shape: str = "full",
        mra: Estimator | None = None,
        *,
        size: tuple[int, int] = (256, 128),
        trunk: str = "resnet50",
        last_stride: int = 1,
        statistics: str = "joint",
        pooling: str = "mean",
        scale: float = 1 / 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        threshold: float = 0.5,
        keypoint_threshold: float = 0.3,
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must not be negative, not {num_classes}")
        self.layout, self.shape = layouts.get(layout), shape
        self.num_classes, self.size = num_classes, (int(size[0]), int(size[1]))
        self.scale, self.mean, self.std = scale, channels("mean", mean, 0.0), channels("std", std, 1.0)
        self.threshold, self.keypoint_threshold = threshold, keypoint_threshold
        self.ma = MA(
            self.layout,
            num_classes,
            trunk=trunk,
            last_stride=last_stride,
            statistics=statistics,
            pooling=pooling,
            shape=shape,
        )
        self.mra = mra
        # Past nn.Module's registration, see the docstring.
        self.__dict__["_packaged"] = Packaged()
        self.train(self.training)  # which puts the estimator in eval mode
        self._options = {
            "trunk": trunk,
            "last_stride": last_stride,
            "statistics": statistics,
            "pooling": pooling,
        }

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments (without ``mra``) as plain values: what a checkpoint keeps."""
        return {
            "num_classes": self.num_classes,
            "layout": self.layout.name,
            "shape": self.shape,
            "size": list(self.size),
            **self._options,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "threshold": self.threshold,
            "keypoint_threshold": self.keypoint_threshold,
        }

    @property
    def dim(self) -> int:
        """P * D, the length of an embedding."""
        return len(self.layout.inputs) * self.ma.trunk.dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> torch.Tensor | MAOutput:
        """Embed people.

        Args:
            crops: uint8 [N, H, W, 3], RGB, or float [N, 3, H, W] in [0, 1] (taken to the nearest of 256 steps).
                Any size; other sizes than ``self.size`` are resized bilinearly.
            masks: [N, h, w], float32 in [0, 1] or uint8: then the estimator does not run.
            keypoints: float32 [N, 17, 3], x and y in pixels of ``crops``; without them a person's regions are
                fixed bands of the mask's box.
            region_map: uint8 [N, H', W'] made beforehand: then neither masks nor keypoints are wanted.

        Returns:
            In eval mode float32 [N, P * D], unit norm; in train mode :class:`~mgran_fast.ma.MAOutput`.
        """
        output = self._run(crops, masks, keypoints, region_map)
        return output if self.training else Encoding(output.embeddings, output.visible).vector

    def encode(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> Encoding:
        """As calling the model in eval mode, with each input's embedding and visibility apart.

        Raises RuntimeError in train mode, where a batch would change the running statistics.
        """
        if self.training:
            raise RuntimeError("encode() is for eval mode: call model.eval() first")
        output = self._run(crops, masks, keypoints, region_map)
        return Encoding(output.embeddings, output.visible)

    def inputs(self, crops: torch.Tensor, region_map: torch.Tensor) -> torch.Tensor:
        """What the trunk sees of whole frames: crops uint8 [N, H, W, 3] of ``self.size`` -> [N, I, 3, H, W].

        I is P, or 1, the whole person alone, for the shapes crop and single.
        """
        regions = self.layout.regions if self.shape == "full" else 0
        return ops.inputs(crops, region_map, self.scale, self.mean, self.std, regions=regions)

    def cuts(self, crops: torch.Tensor, region_map: torch.Tensor) -> list[Cut]:
        """What the trunk sees of each region in the shape crop, arguments as for :meth:`inputs`."""
        made = []
        for region, size in enumerate(self.region_sizes, 1):
            pixels, where = cut(crops, region_map, region, size)
            # Of a map of one region: the whole person, which is the whole crop where there is nobody, and the region.
            both = ops.inputs(pixels, where.clamp(max=1), self.scale, self.mean, self.std, regions=1)
            made.append(Cut(both[:, 1].contiguous(memory_format=torch.channels_last), where))
        return made

    @property
    def region_sizes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) in pixels of the frame that each region gets of its own in the shape crop."""
        return self.layout.region_sizes(self.size)

    @property
    def alignment(self) -> Alignment:
        """What makes region maps, as the model is set now."""
        mra = self.__dict__["_packaged"] if self.mra is None else self.mra
        return Alignment(self.layout, self.size, self.threshold, self.keypoint_threshold, mra=mra)

    @torch.no_grad()
    def estimate(self, crops: torch.Tensor) -> Estimate:
        """What the estimator says of crops, uint8 [N, H, W, 3]: ``mra``, or the package's RegionNet where it is None.

        Raises CheckpointError when the package's weights are missing from the installation.
        """
        return self.alignment.mra(crops)

    @torch.no_grad()
    def regions(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """MRA: the region map uint8 [N, H, W] at ``self.size``, from given masks or from the estimator.

        Args: as for :meth:`forward`, crops as uint8.
        """
        alignment = self.alignment
        return alignment.regions(*alignment.found(crops, masks, keypoints))

    def train(self, mode: bool = True) -> MGRAN:
        """Set the mode of MA. The estimator is trained on its own, and always runs in eval mode here."""
        super().train(mode)
        if isinstance(self.mra, nn.Module):
            self.mra.eval()
        return self

    def save(self, path: str | PathLike[str], *, notes: Mapping[str, str] | None = None) -> None:
        """Write MA's weights and the configuration to a safetensors file, atomically (not the estimator)."""
        from mgran_fast.weights.checkpoint import save

        save(self, path, notes=notes)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        mra: Estimator | None = None,
        layout: str | None = None,
        num_classes: int | None = None,
    ) -> MGRAN:
        """Read what :meth:`save` wrote. Raises CheckpointError, also when it has another layout or class count."""
        from mgran_fast.weights.checkpoint import load

        return load(path, mra=mra, layout=layout, num_classes=num_classes)

    def save_pretrained(
        self, folder: str | PathLike[str], *, notes: Mapping[str, str] | None = None, license: str = "unknown"
    ) -> None:
        """Write ``model.safetensors``, as :meth:`save` does, and a model card, ``README.md``; one that is there stays.

        Args:
            notes: what is known of the training, and figures that were measured: kept, and told in the card.
            license: of the weights, an identifier of the Hugging Face hub such as "apache-2.0" or "other".

        Raises ValueError for a license that is no identifier.
        """
        from mgran_fast.integrations import hub

        hub.save(self, folder, notes=notes, license=license)

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        mra: Estimator | None = None,
    ) -> MGRAN:
        """Read what :meth:`save_pretrained` or :meth:`push_to_hub` wrote, in eval mode, on the CPU.

        Args:
            name: a folder, or "owner/name" on the Hugging Face hub: then the file is downloaded once, and kept.
            revision: branch, tag or commit on the hub.
            token: for private models; None for that of the login, if there is one.
            cache_dir: where downloads are kept, None for the hub's own place.
            mra: the estimator to give to it.

        Raises:
            CheckpointError: it cannot be had, or is no MGRAN checkpoint.
            MGRANError: the hub is asked, and huggingface_hub is not installed.
        """
        from mgran_fast.integrations import hub

        return hub.from_pretrained(name, revision=revision, token=token, cache_dir=cache_dir, mra=mra)

    def push_to_hub(
        self,
        name: str,
        *,
        notes: Mapping[str, str] | None = None,
        license: str = "unknown",
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        message: str = "Upload MGRAN",
    ) -> str:
        """Upload weights and model card to the Hugging Face hub; a card that is there stays. Returns the commit's URL.

        Args:
            name: "owner/name"; made when missing.
            notes, license: as for :meth:`save_pretrained`.
            private: of a new repository; None for the owner's default.
            revision: the branch, made when missing; None for the main one.
            token: None for that of the login.
            message: of the commit.

        Raises:
            MGRANError: it cannot be uploaded, or huggingface_hub is not installed.
        """
        from mgran_fast.integrations import hub

        return hub.push(
            self, name, notes=notes, license=license, private=private, revision=revision, token=token, message=message
        )

    def _run(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None,
        keypoints: torch.Tensor | None,
        region_map: torch.Tensor | None,
    ) -> MAOutput:
        if region_map is None and self.shape == "full":
            # Regions and inputs in one pass.
            crops = as_bytes(crops)
            inputs, region_map = ops.align(
                resize(crops, self.size),
                *self.alignment.found(crops, masks, keypoints),
                self.layout,
                self.threshold,
                self.scale,
                self.mean,
                self.std,
                keypoint_threshold=self.keypoint_threshold,
            )
            assert region_map is not None
            output: MAOutput = self.ma(inputs, region_map)
            return output
        crops, region_map = self.alignment.region_map(crops, masks, keypoints, region_map)
        inputs = self.inputs(crops, region_map)
        if self.shape == "crop":
            output = self.ma(inputs, region_map, self.cuts(crops, region_map))
        else:
            output = self.ma(inputs, region_map)
        return output
