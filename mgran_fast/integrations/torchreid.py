"""MGRAN as a model of torchreid's registry (https://github.com/KaiyangZhou/deep-person-reid).

    import torchreid
    from mgran_fast.integrations.torchreid import register

    register(trunk="resnet50", size=(256, 128))
    model = torchreid.models.build_model("mgran", num_classes=751, loss="triplet", pretrained=False).cuda()
    optimizer = torchreid.optim.build_optimizer(model, optim="adam", lr=3e-4)
    scheduler = torchreid.optim.build_lr_scheduler(optimizer, stepsize=20)  # torchreid saves its state, and wants one
    engine = torchreid.engine.ImageTripletEngine(datamanager, model, optimizer, scheduler=scheduler)
    engine.run(max_epoch=60, save_dir="log/mgran")
    model.mgran.save("model.safetensors")  # for everything else in mgran_fast

torchreid 1.4 and the package 0.2.5 have the same interface here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgran_fast.errors import MGRANError
from mgran_fast.ma import concatenate
from mgran_fast.model import MGRAN
from mgran_fast.weights.trunk import load_trunk

#: What torchreid's transforms normalise with unless told otherwise.
NORM_MEAN, NORM_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOSSES = ("softmax", "triplet")


class Model(nn.Module):
    """An MGRAN that is called as torchreid calls its models.

    In train mode it answers what the loss wants: for "softmax" logits, for "triplet" logits and features. Logits are a
    tuple, one tensor [N, K] for each of the P inputs (whole person, regions), over which torchreid takes the mean loss,
    as for its other models with branches. An input that somebody does not show answers as the whole person does.
    Features are float32 [N, P * D] of unit norm, from before the BNNeck. In eval mode the answer is the embedding that
    MGRAN ranks, [N, P * D], unit norm.

    Args:
        mgran: the network; for training with classes.
        loss: softmax or triplet.
        norm_mean, norm_std: what torchreid's transforms normalised with. It is undone here, since MGRAN looks for masks
            in the picture, and normalises by itself.

    Raises ValueError for another loss.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        mgran: MGRAN,
        loss: str = "softmax",
        *,
        norm_mean: Sequence[float] = NORM_MEAN,
        norm_std: Sequence[float] = NORM_STD,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        self.mgran, self.loss, self.feature_dim = mgran, loss, mgran.dim
        self.register_buffer("mean", torch.tensor(norm_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(norm_std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> Any:
        """images float [N, 3, H, W], RGB, normalised; see the class for what comes back."""
        output = self.mgran((images * self.std + self.mean).clamp(0.0, 1.0))
        if not self.training:
            return output
        if output.logits is None:
            raise ValueError("the network has no classes: build it with num_classes")
        seen = output.visible[..., None]
        logits = torch.where(seen, output.logits, output.logits[:, :1]).unbind(1)
        return logits if self.loss == "softmax" else (logits, concatenate(output.features, output.visible))


def register(
    name: str = "mgran",
    *,
    weights: str | os.PathLike[str] | None = None,
    norm_mean: Sequence[float] = NORM_MEAN,
    norm_std: Sequence[float] = NORM_STD,
    **options: Any,
) -> None:
    """Put MGRAN into torchreid's registry, so that ``torchreid.models.build_model(name, ...)`` makes a :class:`Model`.

    Args:
        name: in the registry; an entry of this name is replaced.
        weights: torchvision's ResNet weights, .pth or .safetensors, for ``pretrained=True``. Nothing is downloaded.
        norm_mean, norm_std: as for :class:`Model`.
        options: of :class:`mgran_fast.MGRAN`: layout, size, trunk and so on. Pretrained weights want their ``mean`` and
            ``std``.

    Raises MGRANError where torchreid is not installed.
    """
    try:
        import torchreid
    except ImportError as error:
        raise MGRANError("torchreid is not installed: pip install torchreid") from error

    def build(num_classes: int, loss: str = "softmax", pretrained: bool = True, **_: Any) -> Model:
        mgran = MGRAN(num_classes, **options)
        if pretrained:
            if weights is None:
                raise ValueError("nothing is downloaded: pass pretrained=False, or the trunk's weights to register()")
            load_trunk(mgran, Path(weights))
        return Model(mgran, loss, norm_mean=norm_mean, norm_std=norm_std)

    # The registry has no public door.
    getattr(torchreid.models, "__model_factory")[name] = build
