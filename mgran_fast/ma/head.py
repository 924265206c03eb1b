"""The head: a BNNeck and a classifier for each input, which know that an input may show nothing."""

from __future__ import annotations

import torch
from torch import nn

from mgran_fast import ranks


class BNNeck(nn.Module):
    """Batch norm without shift between the embedding and the classifier (BNNeck; Luo et al. 2019), for P inputs.

    Rows whose input is not visible take no part in the statistics and come out as 0. On several ranks the statistics
    are those of all ranks' rows.

    Args:
        inputs: P.
        dim: D.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, inputs: int, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(inputs, dim))
        self.register_buffer("running_mean", torch.zeros(inputs, dim))
        self.register_buffer("running_var", torch.ones(inputs, dim))

    def forward(self, features: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """features [N, P, D], visible bool [N, P] -> [N, P, D] float32 (float64 for float64 features)."""
        # Not by torch.promote_types, which torch 2.6 writes into exported files and cannot read again.
        x = features if features.dtype == torch.float64 else features.float()
        seen = visible.to(x.dtype)[..., None]
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = ranks.all_sum(seen.sum(0).detach())
            mean = ranks.all_sum((x * seen).sum(0)) / count.clamp(min=1)
            var = ranks.all_sum(((x - mean).square() * seen).sum(0)) / count.clamp(min=1)
            with torch.no_grad():
                # An input that nobody in the batch shows (or one person alone: no variance) leaves no trace.
                share = torch.where(count > 1, self.momentum, 0.0).to(self.running_mean.dtype)
                unbiased = var * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(share.dtype), share.expand_as(mean))
                self.running_var.lerp_(unbiased.to(share.dtype), share.expand_as(var))
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight * seen

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eval mode as (features - mean) * gain: both [P, D], copies without gradients."""
        gain = torch.rsqrt(self.running_var + self.eps) * self.weight.detach()
        return self.running_mean.detach().clone(), gain


class Classifiers(nn.Module):
    """One linear classifier without bias for each of P inputs: [N, P, D] -> logits [N, P, K]."""

    def __init__(self, inputs: int, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, classes, dim))
        nn.init.normal_(self.weight, std=0.001)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        # In this order the gradient of the weights comes as they lie, and nobody copies it.
        return torch.bmm(self.weight, embeddings.permute(1, 2, 0)).permute(2, 0, 1)
