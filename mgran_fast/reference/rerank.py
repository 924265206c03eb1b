"""Re-ranking by k-reciprocal neighbours, in the open: dense, slow, in float64.

Zhong, Zheng, Cao & Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. Of n = Q + G
pictures with distances d, let e_ij = d_ij^2 / max_k d_ik^2, and N(i, k) the k pictures that are nearest to i, itself
among them, ties by index.

    R(i, k)     those of N(i, k + 1) that have i among their own N(., k + 1)
    R*(i)       R(i, k1), and of each c in it R(c, k1 / 2) too, where more than two thirds of that are in R(i, k1)
    v_i         exp(-e_ij) for j in R*(i), 0 elsewhere, divided by its sum
    w_i         the mean of v_j over j in N(i, k2)
    J_ij        1 - s / (2 - s) with s = sum over k of min(w_ik, w_jk): the Jaccard distance
    result      (1 - weight) J_ij + weight e_ij, for queries i and gallery entries j

k1 / 2 is rounded to the nearest even number where it lies between two, as NumPy does.
"""

from __future__ import annotations

import torch


def rerank(
    query_query: torch.Tensor,
    query_gallery: torch.Tensor,
    gallery_gallery: torch.Tensor,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
) -> torch.Tensor:
    """Distances [Q, Q], [Q, G] and [G, G] -> float64 [Q, G]."""
    q = len(query_gallery)
    top, bottom = (query_query, query_gallery), (query_gallery.T, gallery_gallery)
    squares = torch.cat([torch.cat(top, dim=1), torch.cat(bottom, dim=1)]).double().square()
    largest = squares.amax(dim=1, keepdim=True)
    share = squares / torch.where(largest > 0, largest, 1)
    n = len(share)
    order = squares.argsort(dim=1, stable=True)

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i, : k + 1].tolist() if i in order[j, : k + 1].tolist()}

    vectors = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        own = reciprocal(i, k1)
        members = set(own)
        for candidate in own:
            other = reciprocal(candidate, round(k1 / 2))
            if 3 * len(other & own) > 2 * len(other):
                members |= other
        at = sorted(members)
        vectors[i, at] = torch.softmax(-share[i, at], dim=0)
    means = torch.stack([vectors[order[i, :k2]].mean(dim=0) for i in range(n)])
    common = torch.minimum(means[:q, None], means[None, q:]).sum(dim=2)
    return (1 - weight) * (1 - common / (2 - common)) + weight * share[:q, q:]
