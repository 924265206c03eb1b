"""Online instance matching: identities as a table of what was seen of them, rather than as learnt classifiers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mgran_fast.ma import MAOutput


class OIMLoss(nn.Module):
    """Online instance matching (Xiao et al., CVPR 2017, section 3.3), with a table for each of P inputs.

    The loss is ``-log softmax(table @ x / temperature)`` at the person's row, x being the L2-normalised embedding.
    After that a row becomes ``momentum * row + (1 - momentum) * x`` of unit length. Of several pictures of a person in
    a batch it is their mean that goes in, so that their order and their spread over ranks do not count. All training
    pictures have labels here, so there is no queue of people without.

    Args:
        classes: K, the training people.
        inputs: P.
        dim: D.
        temperature: positive.
        momentum: the share of the old row, in [0, 1).

    Attributes:
        table: float32 [P, K, D]; a row is 0 until its person was seen. It is part of the state of a run.
    """

    table: torch.Tensor

    def __init__(self, classes: int, inputs: int, dim: int, *, temperature: float = 0.1, momentum: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("table", torch.zeros(inputs, classes, dim))

    def forward(self, output: MAOutput, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and the scores of the classes: [N, P] and [N, P, K]. In train mode the table learns."""
        x = F.normalize(output.embeddings.float(), dim=-1)
        # A copy: the gradient wants the table as it was.
        scores = torch.einsum("npd,pkd->npk", x, self.table.clone()) / self.temperature
        target = labels[:, None].expand(scores.shape[:2]).flatten()
        losses = F.cross_entropy(scores.flatten(0, 1), target, reduction="none").view(scores.shape[:2])
        if self.training:
            self._learn(x.detach(), labels, output.visible)
        return losses, scores

    @torch.no_grad()
    def _learn(self, x: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor) -> None:
        same = (labels[:, None] == labels).to(x.dtype)
        shown = seen.to(x.dtype)
        count = same @ shown
        mean = torch.einsum("nm,mp,mpd->pnd", same, shown, x) / count.clamp(min=1).T[..., None]
        old = self.table[:, labels]
        new = F.normalize(self.momentum * old + (1 - self.momentum) * mean, dim=-1)
        new = torch.where((count > 0).T[..., None], new, old)
        # Pictures of one person write the very same bits, whichever of them comes last.
        first = same.argmax(1)
        self.table.index_copy_(1, labels, new[:, first])
