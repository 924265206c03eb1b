"""The trunk's batch norm."""

from __future__ import annotations

import torch
from torch import nn

from mgran_fast import ops, ranks
from mgran_fast.ops.batchnorm import Sum

STATISTICS = ("joint", "per_input")


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over a batch that holds P inputs of each person, person after person: [N * P, C, h, w].

    With ``statistics="joint"`` the whole batch gives one mean and variance. With ``"per_input"`` each input
    has those of its own N rows, and the running averages are updated P times, input after input: exactly what
    P calls of one shared network do. On several ranks the batch is that of all of them. In eval mode all are the same.
    """

    inputs: int = 1
    statistics: str = "joint"

    @property
    def groups(self) -> int:
        """How many groups of rows have statistics of their own."""
        return self.inputs if self.statistics == "per_input" else 1

    @property
    def all_sum(self) -> Sum | None:
        """What makes statistics those of all ranks; None on one alone."""
        return ranks.all_sum if ranks.world() > 1 else None

    def running(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Running mean and variance, and by how much a batch moves them, which is counted here."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(self.groups)
        return self.running_mean, self.running_var, self.momentum or 0.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or (self.groups == 1 and self.all_sum is None):
            return super().forward(input)
        wide = torch.promote_types(input.dtype, torch.float32)
        mean, var, momentum = self.running()
        return ops.batchnorm(
            input,
            self.weight.to(wide),
            self.bias.to(wide),
            mean,
            var,
            training=True,
            groups=self.groups,
            momentum=momentum,
            eps=self.eps,
            all_sum=self.all_sum,
        )
