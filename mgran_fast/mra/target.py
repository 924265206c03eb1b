"""Which of several people a crop is about."""

from __future__ import annotations

import torch

#: The spread of the rule for the centre, as a share of the crop's side.
SPREAD = 0.25


def rank(boxes: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """How much each box looks like the one that the crop was cut around: the product of

    - the score;
    - the centre: exp(-(dx^2 + dy^2) / (2 SPREAD^2)), where dx and dy lead from the crop's centre to the centre of the
      box, as shares of the crop's width and height. A detector's or an annotator's box has its person in the middle,
      so somebody who enters from the side is somebody else: a quarter of the width away counts 0.61, half 0.14;
    - the size: the square root of the share of the crop that the box covers, which is the mean of its sides' shares
      (geometric). The crop's person fills it, people behind do not: half the height and width counts 0.5.

    All three are gentle: a centred, large person with a middling score wins against a sure one at the border and
    against a sure small one in the background. No rank is 0 where the score is not and the box has an area: a badly
    placed person is taken when there is no better one.

    Args:
        boxes: float32 [K, 4], x1, y1, x2, y2 in pixels of the crop; what lies outside of it does not count.
        scores: float32 [K] in [0, 1].
        size: height and width of the crop in pixels.

    Returns:
        float32 [K] in [0, 1].
    """
    height, width = size
    limit = boxes.new_tensor([width, height])
    low, high = boxes[:, :2].clamp(min=0).minimum(limit), boxes[:, 2:].clamp(min=0).minimum(limit)
    offset = (low + high) / (2 * limit) - 0.5
    centre = torch.exp(-offset.square().sum(dim=1) / (2 * SPREAD**2))
    share = ((high - low).clamp(min=0) / limit).prod(dim=1)
    return scores * centre * share.sqrt()


def choose(
    boxes: torch.Tensor, scores: torch.Tensor, crop: torch.Tensor, count: int, size: tuple[int, int]
) -> torch.Tensor:
    """The person that each crop is about: the box of the highest :func:`rank`, the first one of equals.

    Batched, without a loop over crops and without waiting for the device.

    Args:
        boxes, scores, size: as for :func:`rank`; all crops have one size.
        crop: int64 [K], which crop each box belongs to, 0 to count - 1.
        count: N, the number of crops.

    Returns:
        int64 [N], the row of ``boxes`` chosen for each crop; -1 for a crop without a box of positive rank.
    """
    k = len(boxes)
    ranks = rank(boxes, scores, size)
    best = ranks.new_zeros(count).scatter_reduce(0, crop, ranks, "amax")
    rows = torch.arange(k, device=boxes.device)
    rows = torch.where((ranks > 0) & (ranks == best[crop]), rows, k)
    chosen = crop.new_full((count,), k).scatter_reduce(0, crop, rows, "amin")
    return torch.where(chosen < k, chosen, -1)
