"""The losses, against loops that follow their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from mgran_fast.ma import MAOutput
from mgran_fast.train.losses import RegionLoss

N, P, D, K = 6, 3, 5, 4
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def random_output(seed: int = 0, visible: torch.Tensor | None = None) -> MAOutput:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.ones(N, P, dtype=torch.bool) if visible is None else visible
    features = torch.randn(N, P, D, generator=generator)
    return MAOutput(features, features.clone(), torch.randn(N, P, K, generator=generator), seen)


def smoothed_cross_entropy(logits: list[float], label: int, smoothing: float) -> float:
    """-sum_k q_k log p_k with q = (1 - s) one-hot + s / K (Szegedy et al. 2016)."""
    total = math.log(sum(math.exp(v) for v in logits))
    share = [smoothing / len(logits) + (1 - smoothing) * (k == label) for k in range(len(logits))]
    return -sum(q * (v - total) for q, v in zip(share, logits, strict=True))


def batch_hard(features: torch.Tensor, labels: list[int], margin: float) -> float:
    """max(0, margin + furthest positive - nearest negative), averaged over the anchors where it is not 0."""
    rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in features.tolist()]
    found = []
    for a, anchor in enumerate(rows):
        far, near = -math.inf, math.inf
        for b, other in enumerate(rows):
            distance = math.dist(anchor, other)
            if a != b and labels[a] == labels[b]:
                far = max(far, distance)
            elif labels[a] != labels[b]:
                near = min(near, distance)
        if math.isfinite(far) and math.isfinite(near):
            found.append(max(0.0, margin + far - near))
    hurt = [value for value in found if value > 0]
    return sum(hurt) / len(hurt) if hurt else 0.0


def by_hand(output: MAOutput, smoothing: float, margin: float) -> tuple[float, float, float]:
    assert output.logits is not None
    identity, triplet, right = [], [], []
    for p in range(output.features.shape[1]):
        rows = [n for n in range(len(LABELS)) if output.visible[n, p]]
        if len(rows) < 2:
            continue
        labels = [int(LABELS[n]) for n in rows]
        logits = [output.logits[n, p].tolist() for n in rows]
        losses = [smoothed_cross_entropy(row, label, smoothing) for row, label in zip(logits, labels, strict=True)]
        identity.append(sum(losses) / len(rows))
        triplet.append(batch_hard(output.features[rows, p], labels, margin))
        right.append(sum(row.index(max(row)) == label for row, label in zip(logits, labels, strict=True)) / len(rows))
    return sum(identity) / len(identity), sum(triplet) / len(triplet), sum(right) / len(right)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("smoothing", "margin"), [(0.1, 0.3), (0.0, 0.0), (0.3, 1.5)])
def test_losses_follow_their_definitions(seed: int, smoothing: float, margin: float) -> None:
    visible = torch.rand(N, P, generator=torch.Generator().manual_seed(seed + 10)) < 0.8
    visible[:, 0] = True
    output = random_output(seed, visible)
    got = RegionLoss(smoothing, margin)(output, LABELS)
    want = by_hand(output, smoothing, margin)
    assert [float(v) for v in got] == pytest.approx(want, abs=1e-5)


def test_the_length_of_a_feature_does_not_matter() -> None:
    output = random_output()
    longer = output._replace(features=output.features * torch.tensor([1.0, 10.0, 0.1])[:, None])
    loss = RegionLoss()
    assert float(loss(longer, LABELS).triplet) == pytest.approx(float(loss(output, LABELS).triplet), abs=1e-6)


def test_separated_people_have_no_triplet_loss() -> None:
    features = torch.eye(3).repeat_interleave(2, 0)[:, None]
    output = MAOutput(features, features, torch.zeros(N, 1, K), torch.ones(N, 1, dtype=torch.bool))
    losses = RegionLoss(margin=0.3)(output, LABELS)
    assert float(losses.triplet) == 0.0
    assert float(losses.identity) == pytest.approx(math.log(K))


def test_invisible_rows_take_no_part() -> None:
    visible = torch.ones(N, P, dtype=torch.bool)
    visible[1, 2] = visible[4, 1] = False
    output = random_output(1, visible)
    assert output.logits is not None
    features, logits = output.features.clone(), output.logits.clone()
    features[~visible], logits[~visible] = 1e3, 1e3
    changed = output._replace(features=features, logits=logits)
    loss = RegionLoss()
    assert [float(v) for v in loss(changed, LABELS)] == [float(v) for v in loss(output, LABELS)]
    features.requires_grad_()
    logits.requires_grad_()
    losses = loss(changed, LABELS)
    (losses.identity + losses.triplet).backward()
    assert features.grad is not None
    assert logits.grad is not None
    assert not features.grad[~visible].any()
    assert not logits.grad[~visible].any()
    assert logits.grad[visible].abs().sum(-1).min() > 0


def test_a_region_that_one_person_shows_takes_no_part() -> None:
    visible = torch.ones(N, P, dtype=torch.bool)
    visible[1:, 2] = False
    output = random_output(2, visible)
    assert output.logits is not None
    fewer = MAOutput(output.features[:, :2], output.embeddings[:, :2], output.logits[:, :2], visible[:, :2])
    loss = RegionLoss()
    assert [float(v) for v in loss(output, LABELS)] == [float(v) for v in loss(fewer, LABELS)]


def test_nobody_visible_gives_a_loss_of_zero_that_can_be_differentiated() -> None:
    output = random_output(3, torch.zeros(N, P, dtype=torch.bool))
    assert output.logits is not None
    logits = output.logits.requires_grad_()
    losses = RegionLoss()(output, LABELS)
    assert [float(v.detach()) for v in losses] == [0.0, 0.0, 0.0]
    (losses.identity + losses.triplet).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_one_identity_alone_gives_no_triplet_but_a_gradient() -> None:
    output = random_output(4)
    assert output.logits is not None
    logits = output.logits.requires_grad_()
    losses = RegionLoss()(output, torch.zeros(N, dtype=torch.int64))
    assert float(losses.triplet.detach()) == 0.0
    (losses.identity + losses.triplet).backward()
    assert logits.grad is not None
    assert bool(logits.grad.any())


def test_bfloat16_features_give_float32_losses() -> None:
    output = random_output(5)
    assert output.logits is not None
    half = output._replace(features=output.features.bfloat16(), logits=output.logits.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        losses = RegionLoss()(half, LABELS)
    for got, want in zip(losses, RegionLoss()(output, LABELS), strict=True):
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(float(want), abs=0.05)


def test_a_model_without_classifiers() -> None:
    with pytest.raises(ValueError, match="no classifiers: build it with num_classes"):
        RegionLoss()(random_output()._replace(logits=None), LABELS)
