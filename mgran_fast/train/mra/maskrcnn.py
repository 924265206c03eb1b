"""Training of the joint Mask R-CNN as a Lightning module, apart from MA."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from mgran_fast.data.cache import PRESENT
from mgran_fast.data.dataset import Problems
from mgran_fast.data.labels import LabelledBatch, PictureBatch
from mgran_fast.layouts import KEYPOINT_FLIP
from mgran_fast.mra.maskrcnn import MaskRCNN
from mgran_fast.train.mra.config import MRAConfig
from mgran_fast.train.optim import WarmupCosine

#: A keypoint with a lower score is not learnt from: the detector's keypoint loss knows no weights, and a guess of a
#: teacher is worth less than nothing. As in :func:`mgran_fast.ops.regions`.
LEAST_SCORE = 0.3
# The weight of MRAConfig that each of the detector's losses has; the others count as they are.
_WEIGHTS = {"loss_mask": "mask_weight", "loss_keypoint": "keypoint_weight", "loss_classifier": "presence_weight"}


def targets(batch: LabelledBatch) -> list[dict[str, torch.Tensor]]:
    """What the detector is to say of crops: the whole crop is the box of its person, or nobody is there."""
    height, width = batch.masks.shape[1:]
    box = torch.tensor([[0.0, 0.0, width, height]], device=batch.crops.device)
    result = []
    for i, present in enumerate((batch.presence >= PRESENT).tolist()):
        people = slice(i, i + 1) if present else slice(0, 0)
        result.append(
            {
                "boxes": box[: int(present)],
                "masks": batch.masks[people],
                "keypoints": batch.keypoints[people],
                "has_mask": batch.has_mask[people],
                "has_keypoints": batch.has_keypoints[people],
            }
        )
    return result


class MaskRCNNModule(pl.LightningModule):
    """One run: the detector's own losses, mirrored crops, AdamW with a cosine.

    Args:
        model: what is trained.
        config: the settings.
        steps: of the whole run.
        calibrate: set the statistics of frozen batch norm from the first batch that has pictures; for a model with
            random weights.
    """

    def __init__(self, model: MaskRCNN, config: MRAConfig, steps: int, calibrate: bool = False) -> None:
        super().__init__()
        self.model, self.config, self.steps, self.calibrate = model, config, steps, calibrate
        self.problems = Problems()
        self.shown = 0

    def estimator(self) -> MaskRCNN:
        """The model itself, in eval mode."""
        return self.model.eval()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # An epoch that showed no picture is never saved.
        self.calibrate = False

    def training_step(self, batch: LabelledBatch | PictureBatch, index: int) -> torch.Tensor | None:
        self.problems.add(batch.bad)
        if len(batch) == 0:
            return None
        self.shown += len(batch)
        pictures, wanted = self._mirrored(batch)
        # Not by the step: one whose pictures could not be read counts as well.
        if self.calibrate:
            self.model.calibrate(pictures)
            self.calibrate = False
        # By the step, so that a resumed run draws what the whole one would have.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + 2 * self.global_step)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            # Torchvision samples proposals with torch's own numbers.
            torch.manual_seed(self.config.seed * 1_000_003 + self.global_step)
            parts = self.model.losses(pictures, wanted, generator=generator)
        total = torch.stack(
            [getattr(self.config, _WEIGHTS[name]) * part if name in _WEIGHTS else part for name, part in parts.items()]
        ).sum()
        values = {name.removeprefix("loss_").replace("_", " ") + " loss": part.detach() for name, part in parts.items()}
        self.log_dict({**values, "loss": total.detach()}, on_step=False, on_epoch=True, batch_size=len(batch))
        return total

    def _mirrored(
        self, batch: LabelledBatch | PictureBatch
    ) -> tuple[torch.Tensor | list[torch.Tensor], list[dict[str, torch.Tensor]]]:
        """The pictures and targets of a batch, every second one mirrored, by the step."""
        crops = isinstance(batch, LabelledBatch)
        pictures: list[torch.Tensor] = list(batch.crops) if isinstance(batch, LabelledBatch) else list(batch.pictures)
        wanted = targets(batch) if isinstance(batch, LabelledBatch) else batch.targets
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + 2 * self.global_step + 1)
        chosen = (torch.rand(len(pictures), generator=generator) < 0.5).tolist()
        changed = []
        for i, (target, flip) in enumerate(zip(wanted, chosen, strict=True)):
            pictures[i] = pictures[i].flip(1) if flip else pictures[i]
            changed.append(_prepared(target, pictures[i].shape[1], flip))
        return (torch.stack(pictures) if crops else pictures), changed

    def configure_optimizers(self) -> Any:
        learnt = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = (
            {"params": [p for p in learnt if p.dim() > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in learnt if p.dim() <= 1], "weight_decay": 0.0},
        )
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate)
        share = torch.optim.lr_scheduler.LambdaLR(optimizer, WarmupCosine(self.steps, self.config.warmup))
        return [optimizer], [{"scheduler": share, "interval": "step"}]


def _prepared(target: dict[str, torch.Tensor], width: int, flip: bool) -> dict[str, torch.Tensor]:
    """A target with its unsure keypoints taken out, mirrored if wanted."""
    keypoints = target["keypoints"] * (target["keypoints"][..., 2:] >= LEAST_SCORE)
    if not flip:
        return {**target, "keypoints": keypoints}
    boxes = target["boxes"].clone()
    boxes[:, 0], boxes[:, 2] = width - target["boxes"][:, 2], width - target["boxes"][:, 0]
    keypoints = keypoints[:, list(KEYPOINT_FLIP)]
    known = keypoints[..., 2] > 0
    keypoints[..., 0] = torch.where(known, width - keypoints[..., 0], keypoints[..., 0])
    return {**target, "boxes": boxes, "keypoints": keypoints, "masks": target["masks"].flip(2)}
