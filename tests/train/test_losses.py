"""The losses, against loops that follow their definitions, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import CircleLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch._subclasses.fake_tensor import FakeTensorMode

from mgran_fast.ma import MAOutput
from mgran_fast.train import losses
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.losses import RegionLoss, circle, triplet
from mgran_fast.train.oim import OIMLoss

N, P, D, K = 6, 3, 5, 4
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def random_output(seed: int = 0, visible: torch.Tensor | None = None) -> MAOutput:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.ones(N, P, dtype=torch.bool) if visible is None else visible
    features = torch.randn(N, P, D, generator=generator)
    return MAOutput(features, features.clone(), torch.randn(N, P, K, generator=generator), seen)


def region_loss(**changes: Any) -> RegionLoss:
    return losses.build(TrainConfig(**changes), K, P, D)


def smoothed_cross_entropy(logits: list[float], label: int, smoothing: float) -> float:
    """-sum_k q_k log p_k with q = (1 - s) one-hot + s / K (Szegedy et al. 2016)."""
    total = math.log(sum(math.exp(v) for v in logits))
    share = [smoothing / len(logits) + (1 - smoothing) * (k == label) for k in range(len(logits))]
    return -sum(q * (v - total) for q, v in zip(share, logits, strict=True))


Metric = Callable[[torch.Tensor, list[int]], float]


def batch_hard(margin: float, soft: bool = False) -> Metric:
    """max(0, margin + furthest positive - nearest negative), averaged over the anchors where it is not 0."""

    def loss(features: torch.Tensor, labels: list[int]) -> float:
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
                found.append(math.log1p(math.exp(far - near)) if soft else max(0.0, margin + far - near))
        return mean_of_positive(found)

    return loss


def circle_by_hand(m: float, gamma: float) -> Metric:
    """Equation 6 of Sun et al. 2020: log(1 + sum exp(gamma a_n (s_n - m)) sum exp(-gamma a_p (s_p - (1 - m))))."""

    def loss(features: torch.Tensor, labels: list[int]) -> float:
        unit = torch.nn.functional.normalize(features.double())
        found = []
        for a in range(len(labels)):
            close, apart = [], []
            for b in range(len(labels)):
                s = float(unit[a] @ unit[b])
                if a != b and labels[a] == labels[b]:
                    close.append(-gamma * max(0.0, 1 + m - s) * (s - (1 - m)))
                elif labels[a] != labels[b]:
                    apart.append(gamma * max(0.0, s + m) * (s - m))
            if close and apart:
                exponent = log_sum(close) + log_sum(apart)
                found.append(max(exponent, 0.0) + math.log1p(math.exp(-abs(exponent))))
        return mean_of_positive(found)

    return loss


def log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def mean_of_positive(values: list[float]) -> float:
    hurt = [value for value in values if value > 0]
    return sum(hurt) / len(hurt) if hurt else 0.0


def by_hand(output: MAOutput, smoothing: float, metric_loss: Metric) -> tuple[float, float, float]:
    assert output.logits is not None
    identity, metric, right = [], [], []
    for p in range(output.features.shape[1]):
        rows = [n for n in range(len(LABELS)) if output.visible[n, p]]
        if len(rows) < 2:
            continue
        labels = [int(LABELS[n]) for n in rows]
        logits = [output.logits[n, p].tolist() for n in rows]
        losses = [smoothed_cross_entropy(row, label, smoothing) for row, label in zip(logits, labels, strict=True)]
        identity.append(sum(losses) / len(rows))
        metric.append(metric_loss(output.features[rows, p], labels))
        right.append(sum(row.index(max(row)) == label for row, label in zip(logits, labels, strict=True)) / len(rows))
    return sum(identity) / len(identity), sum(metric) / len(metric), sum(right) / len(right)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"label_smoothing": 0.1, "margin": 0.3}, batch_hard(0.3)),
        ({"label_smoothing": 0.0, "margin": 0.0}, batch_hard(0.0)),
        ({"label_smoothing": 0.3, "margin": 1.5}, batch_hard(1.5)),
        ({"metric_loss": "soft_triplet", "margin": 0.3}, batch_hard(0.0, soft=True)),
        ({"metric_loss": "circle"}, circle_by_hand(0.25, 128.0)),
        ({"metric_loss": "circle", "circle_margin": 0.4, "circle_scale": 8.0}, circle_by_hand(0.4, 8.0)),
        ({"metric_loss": "none"}, lambda features, labels: 0.0),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "metric",
)
def test_losses_follow_their_definitions(seed: int, settings: dict[str, Any], metric: Metric) -> None:
    visible = torch.rand(N, P, generator=torch.Generator().manual_seed(seed + 10)) < 0.8
    visible[:, 0] = True
    output = random_output(seed, visible)
    got = region_loss(**settings)(output, LABELS)
    want = by_hand(output, settings.get("label_smoothing", 0.1), metric)
    assert [float(v) for v in got] == pytest.approx(want, rel=1e-5, abs=1e-5)


FIVE = torch.tensor([0, 0, 1, 1, 2]), torch.ones(5, dtype=torch.bool)


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_of_the_triplet_losses(soft: bool) -> None:
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: triplet(1.0, soft=soft)(x, *FIVE), features)


def test_the_gradient_of_the_circle_loss() -> None:
    """Its weights count as constants (section 3.2), so that it is no derivative of the loss."""
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels, seen = FIVE
    unit = torch.nn.functional.normalize(features)
    s = unit @ unit.T
    close = -torch.relu(1.25 - s.detach()) * (s - 0.75)
    apart = torch.relu(s.detach() + 0.25) * (s - 0.25)
    rows = [
        torch.log1p(close[a, positive].exp() * apart[a][labels != labels[a]].exp().sum())
        for a, positive in ((0, 1), (1, 0), (2, 3), (3, 2))
    ]
    (want,) = torch.autograd.grad(torch.stack(rows).mean(), features)
    (got,) = torch.autograd.grad(circle(0.25, 1.0)(features, labels, seen), features)
    torch.testing.assert_close(got, want)


def test_the_circle_loss_is_the_librarys() -> None:
    features = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4).repeat_interleave(3)
    for margin, scale in ((0.25, 128.0), (0.4, 80.0)):
        want = CircleLoss(m=margin, gamma=scale)(features, labels)
        got = circle(margin, scale)(features, labels, torch.ones(12, dtype=torch.bool))
        assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_the_triplet_losses_are_the_librarys() -> None:
    features = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4).repeat_interleave(3)
    distance = LpDistance(normalize_embeddings=True, p=2)
    chosen = BatchHardMiner(distance=distance)(features, labels)
    for margin, soft in ((0.3, False), (0.0, True)):
        want = TripletMarginLoss(margin=margin, smooth_loss=soft, distance=distance)(features, labels, chosen)
        got = triplet(margin, soft=soft)(features, labels, torch.ones(12, dtype=torch.bool))
        assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_the_length_of_a_feature_does_not_matter() -> None:
    output = random_output()
    longer = output._replace(features=output.features * torch.tensor([1.0, 10.0, 0.1])[:, None])
    loss = region_loss()
    assert float(loss(longer, LABELS).metric) == pytest.approx(float(loss(output, LABELS).metric), abs=1e-6)


def test_separated_people_have_no_triplet_loss() -> None:
    features = torch.eye(3).repeat_interleave(2, 0)[:, None]
    output = MAOutput(features, features, torch.zeros(N, 1, K), torch.ones(N, 1, dtype=torch.bool))
    found = region_loss(label_smoothing=0.0)(output, LABELS)
    assert float(found.metric) == 0.0
    assert float(found.identity) == pytest.approx(math.log(K))


def test_invisible_rows_take_no_part() -> None:
    visible = torch.ones(N, P, dtype=torch.bool)
    visible[1, 2] = visible[4, 1] = False
    output = random_output(1, visible)
    assert output.logits is not None
    features, logits = output.features.clone(), output.logits.clone()
    features[~visible], logits[~visible] = 1e3, 1e3
    changed = output._replace(features=features, logits=logits)
    loss = region_loss()
    assert [float(v) for v in loss(changed, LABELS)] == [float(v) for v in loss(output, LABELS)]
    features.requires_grad_()
    logits.requires_grad_()
    found = loss(changed, LABELS)
    (found.identity + found.metric).backward()
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
    loss = region_loss()
    assert [float(v) for v in loss(output, LABELS)] == [float(v) for v in loss(fewer, LABELS)]


def test_nobody_visible_gives_a_loss_of_zero_that_can_be_differentiated() -> None:
    output = random_output(3, torch.zeros(N, P, dtype=torch.bool))
    assert output.logits is not None
    logits = output.logits.requires_grad_()
    found = region_loss()(output, LABELS)
    assert [float(v.detach()) for v in found] == [0.0, 0.0, 0.0]
    (found.identity + found.metric).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_one_identity_alone_gives_no_triplet_but_a_gradient() -> None:
    output = random_output(4)
    assert output.logits is not None
    logits = output.logits.requires_grad_()
    found = region_loss()(output, torch.zeros(N, dtype=torch.int64))
    assert float(found.metric.detach()) == 0.0
    (found.identity + found.metric).backward()
    assert logits.grad is not None
    assert bool(logits.grad.any())


def test_bfloat16_features_give_float32_losses() -> None:
    output = random_output(5)
    assert output.logits is not None
    half = output._replace(features=output.features.bfloat16(), logits=output.logits.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = region_loss()(half, LABELS)
    for got, want in zip(found, region_loss()(output, LABELS), strict=True):
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(float(want), abs=0.05)


def test_hidden_rows_may_hold_anything() -> None:
    visible = torch.ones(N, P, dtype=torch.bool)
    visible[1, 2] = False
    output = random_output(1, visible)
    assert output.logits is not None
    for name in ("triplet", "soft_triplet", "circle"):
        features, logits = output.features.clone(), output.logits.clone()
        features[~visible] = torch.nan
        logits[~visible] = torch.inf
        features.requires_grad_()
        found = region_loss(metric_loss=name)(output._replace(features=features, logits=logits), LABELS)
        (found.identity + found.metric).backward()
        assert features.grad is not None
        assert bool(features.grad.isfinite().all())
        assert math.isfinite(float(found.identity.detach()))


@pytest.mark.parametrize("metric_loss", ["triplet", "soft_triplet", "circle", "none"])
@pytest.mark.parametrize("identity_loss", ["softmax", "oim"])
def test_nothing_waits_for_the_device(identity_loss: str, metric_loss: str) -> None:
    """Tensors without numbers know nothing that one could wait for: shapes by values and branches are errors."""
    with FakeTensorMode():
        loss = losses.build(TrainConfig(identity_loss=identity_loss, metric_loss=metric_loss), K, P, D)
        features = torch.randn(N, P, D, requires_grad=True)
        output = MAOutput(features, features * 2, features @ torch.randn(D, K), torch.ones(N, P, dtype=torch.bool))
        found = loss(output, torch.zeros(N, dtype=torch.int64))
        (found.identity + found.metric).backward()
        assert features.grad is not None


def test_a_model_without_classifiers() -> None:
    with pytest.raises(ValueError, match="no classifiers: build it with num_classes"):
        region_loss()(random_output()._replace(logits=None), LABELS)
    region_loss(identity_loss="oim")(random_output()._replace(logits=None), LABELS)


# --- online instance matching ---------------------------------------------------------------------------------


def oim_by_hand(
    table: torch.Tensor, output: MAOutput, labels: torch.Tensor, temperature: float, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each row and input, and the table afterwards (Xiao et al. 2017, equations 1 and 2, no queue)."""
    table, loss = table.clone(), torch.zeros(output.visible.shape, dtype=torch.float64)
    before = table.clone()
    for p in range(table.shape[0]):
        for n, label in enumerate(labels.tolist()):
            x = output.embeddings[n, p].double()
            scores = before[p] @ (x / x.norm()) / temperature
            loss[n, p] = -(scores[label] - scores.exp().sum().log())
        for label in set(labels.tolist()):
            rows = [n for n in range(len(labels)) if labels[n] == label and output.visible[n, p]]
            if rows:
                units = [output.embeddings[n, p].double() / output.embeddings[n, p].double().norm() for n in rows]
                row = momentum * before[p, label] + (1 - momentum) * sum(units) / len(units)
                table[p, label] = row / row.norm()
    return loss, table


def test_oim_follows_its_definition() -> None:
    loss = OIMLoss(K, P, D, temperature=0.3, momentum=0.6)
    table = torch.zeros(P, K, D, dtype=torch.float64)
    for seed in range(4):
        visible = torch.rand(N, P, generator=torch.Generator().manual_seed(seed + 10)) < 0.7
        output = random_output(seed, visible)
        labels = torch.tensor([3, 0, 3, 1, 0, 3])
        want, table = oim_by_hand(table, output, labels, 0.3, 0.6)
        got, scores = loss(output, labels)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss.table.double(), table, rtol=1e-5, atol=1e-5)
        assert scores.shape == (N, P, K)
    assert not table[:, 2].any(), "nobody has seen this person"
    seen = table.norm(dim=-1) > 0
    assert loss.table.norm(dim=-1)[seen].tolist() == pytest.approx([1.0] * int(seen.sum()))


def test_the_gradient_of_oim_is_that_of_the_table_before() -> None:
    loss = OIMLoss(K, P, D)
    loss(random_output(0), LABELS)
    before = loss.table.clone()
    embeddings = random_output(1).embeddings.requires_grad_()
    loss(random_output(1)._replace(embeddings=embeddings), LABELS)[0].sum().backward()
    unit = torch.nn.functional.normalize(embeddings.detach(), dim=-1).requires_grad_()
    scores = torch.einsum("npd,pkd->npk", unit, before) / 0.1
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), LABELS.repeat_interleave(P), reduction="sum").backward()
    assert unit.grad is not None
    assert embeddings.grad is not None
    # Through the normalisation: what is along the embedding is lost.
    along = (unit.grad * unit.detach()).sum(-1, keepdim=True) * unit.detach()
    want = (unit.grad - along) / embeddings.detach().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(embeddings.grad, want, rtol=1e-4, atol=1e-5)


def test_the_table_of_oim_does_not_depend_on_the_order() -> None:
    output, order = random_output(2), torch.tensor([3, 1, 5, 0, 4, 2])
    one, other = OIMLoss(K, P, D), OIMLoss(K, P, D)
    one(output, LABELS)
    other(MAOutput(*(None if part is None else part[order] for part in output)), LABELS[order])
    torch.testing.assert_close(one.table, other.table)


def test_the_table_of_oim_travels_with_the_state_and_rests_in_eval_mode() -> None:
    loss = region_loss(identity_loss="oim", oim_momentum=0.2)
    loss(random_output(3), LABELS)
    other = region_loss(identity_loss="oim", oim_momentum=0.2)
    other.load_state_dict(loss.state_dict())
    assert bool(loss.state_dict()["identity.table"].any())
    other.eval()
    first = other(random_output(4), LABELS)
    assert [float(v) for v in other(random_output(4), LABELS)] == [float(v) for v in first]
    other.train()
    assert [float(v) for v in other(random_output(4), LABELS)] == [float(v) for v in loss(random_output(4), LABELS)]
    assert torch.equal(other.identity.table, loss.identity.table)


def test_oim_learns_who_is_who() -> None:
    """Five people far apart: after one look at each the nearest row is the right one."""
    features = torch.eye(5)[:, None].expand(5, P, 5)
    output = MAOutput(features, features, None, torch.ones(5, P, dtype=torch.bool))
    loss = losses.build(TrainConfig(identity_loss="oim"), 5, P, 5)
    labels = torch.tensor([4, 2, 0, 1, 3])
    assert float(loss(output, labels).identity) == pytest.approx(math.log(5)), "an empty table knows nobody"
    found = loss(output, labels)
    assert float(found.accuracy) == 1.0
    assert float(found.identity) == pytest.approx(math.log(1 + 4 * math.exp(-10)), rel=1e-3)
