"""From P embeddings of a person to the one vector that is ranked."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812


def concatenate(embeddings: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """[N, P, D], bool [N, P] -> float32 [N, P * D] of unit norm.

    Each visible input's embedding is L2-normalised, an invisible one is 0, and the whole is divided by the
    square root of the number V of visible inputs. The dot product of two people is then the sum of the cosines
    of the regions that both show, over sqrt(V V'). An embedding that is all 0 (a black picture, an untrained network)
    stays 0, and takes its share from the norm.
    """
    seen = visible.to(torch.float32)
    parts = F.normalize(embeddings.float(), dim=-1) * seen[..., None]
    return (parts / seen.sum(1).clamp(min=1.0).sqrt()[:, None, None]).flatten(1)
