"""The head: a BNNeck that leaves out what nobody sees, classifiers, and the vector that is ranked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mgran_fast import layouts
from mgran_fast.ma import MA, concatenate
from mgran_fast.ma.head import BNNeck, Classifiers


def features(n: int = 6, inputs: int = 3, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, inputs, dim, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def everyone(n: int = 6, inputs: int = 3) -> torch.Tensor:
    return torch.ones(n, inputs, dtype=torch.bool)


def plain(neck: BNNeck, i: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(neck.weight.shape[1])
    norm.weight.data.copy_(neck.weight[i])
    return norm


# --- BNNeck -------------------------------------------------------------------------------------------------


def test_with_everything_visible_it_is_one_batch_norm_for_each_input() -> None:
    neck = BNNeck(3, 5)
    neck.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    norms = [plain(neck, i) for i in range(3)]
    for seed in range(2):
        x = features(seed=seed)
        want = torch.stack([norm(x[:, i]) for i, norm in enumerate(norms)], 1)
        torch.testing.assert_close(neck(x, everyone()), want, rtol=1e-5, atol=1e-5)
    for i, norm in enumerate(norms):
        torch.testing.assert_close(neck.running_mean[i], norm.running_mean)
        torch.testing.assert_close(neck.running_var[i], norm.running_var)
    x = features(seed=9)
    want = torch.stack([norm.eval()(x[:, i]) for i, norm in enumerate(norms)], 1)
    torch.testing.assert_close(neck.eval()(x, everyone()), want, rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_visible_take_no_part() -> None:
    neck = BNNeck(2, 5)
    norm = plain(neck, 1)
    x, visible = features(inputs=2), everyone(inputs=2)
    visible[[1, 4], 1] = False
    x[[1, 4], 1] = 1e4
    got = neck(x, visible)
    assert not got[[1, 4], 1].any()
    seen = [0, 2, 3, 5]
    torch.testing.assert_close(got[seen, 1], norm(x[seen, 1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(neck.running_mean[1], norm.running_mean)
    torch.testing.assert_close(neck.running_var[1], norm.running_var)


@pytest.mark.parametrize("seen", [0, 1])
def test_an_input_that_one_or_none_shows_leaves_the_statistics_alone(seen: int) -> None:
    neck = BNNeck(2, 5)
    visible = everyone(inputs=2)
    visible[seen:, 1] = False
    x = features(inputs=2).requires_grad_()
    got = neck(x, visible)
    got.square().sum().backward()
    assert torch.equal(neck.running_mean[1], torch.zeros(5))
    assert torch.equal(neck.running_var[1], torch.ones(5))
    assert bool((neck.running_mean[0] != 0).all())
    assert bool(got.isfinite().all())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert not x.grad[seen:, 1].any()


def test_fresh_and_in_eval_mode_it_changes_the_length_alone() -> None:
    x = features()
    got = BNNeck(3, 5).eval()(x, everyone())
    torch.testing.assert_close(got, x / (1 + 1e-5) ** 0.5, rtol=1e-6, atol=1e-6)


def test_half_precision_features_are_normed_in_float32() -> None:
    x = features().bfloat16()
    got = BNNeck(3, 5)(x, everyone())
    assert got.dtype == torch.float32
    assert torch.equal(got, BNNeck(3, 5)(x.float(), everyone()))


def test_gradient() -> None:
    neck = BNNeck(2, 3).double()
    visible = torch.tensor([[True, True], [True, False], [True, True], [True, True]])

    x = features(4, 2, 3).double().requires_grad_()
    assert neck(x, visible).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: neck(x, visible), (x,))


# --- classifiers ----------------------------------------------------------------------------------------------


def test_each_input_has_a_classifier_of_its_own() -> None:
    classifiers = Classifiers(3, 5, 7)
    x = features()
    got = classifiers(x)
    assert got.shape == (6, 3, 7)
    for i in range(3):
        torch.testing.assert_close(got[:, i], x[:, i] @ classifiers.weight[i].T)
    assert [name for name, _ in classifiers.named_parameters()] == ["weight"]


# --- the vector that is ranked ----------------------------------------------------------------------------------


def test_concatenate_is_of_unit_norm_whatever_is_visible() -> None:
    visible = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    x = features(3)
    got = concatenate(x, visible)
    assert got.dtype == torch.float32
    assert got.shape == (3, 15)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(3))
    assert not got[1, 5:10].any()
    assert not got[2, 5:].any()


def test_the_dot_product_is_the_sum_of_the_cosines_of_common_regions() -> None:
    visible = torch.tensor([[True, True, False], [True, True, True]])
    x = features(2)
    a, b = concatenate(x, visible)
    cosines = nn.functional.cosine_similarity(x[0], x[1], dim=1)
    assert float(a @ b) == pytest.approx(float(cosines[0] + cosines[1]) / (2 * 3) ** 0.5, abs=1e-6)


def test_concatenate_ignores_lengths_and_survives_zeros() -> None:
    x, visible = features(2), everyone(2)
    torch.testing.assert_close(concatenate(x * 100, visible), concatenate(x, visible))
    zero = torch.zeros(2, 3, 5, requires_grad=True)
    for seen in (visible, ~visible):
        vector = concatenate(zero, seen)
        assert not vector.any()
        vector.sum().backward()
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())
    assert concatenate(x[:0], visible[:0]).shape == (0, 15)


# --- MA as a whole --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_what_is_not_visible_is_zero_everywhere(training: bool) -> None:
    torch.manual_seed(0)
    ma = MA(layouts.REGION, 4, trunk="resnet18").train(training)
    region_map = torch.ones(3, 32, 16, dtype=torch.uint8)
    # A region that one person alone shows has no variance: in training its embedding would be 0.
    region_map[:2, 16:] = 3
    region_map[2] = 0
    inputs = torch.randn(3, 4, 3, 32, 16)
    output = ma(inputs, region_map)
    assert output.visible.tolist() == [
        [True, True, False, True],
        [True, True, False, True],
        [True, False, False, False],
    ]
    for block in (output.features, output.embeddings, output.logits):
        assert not block[~output.visible].any()
        assert bool(block[output.visible].any(1).all())


def test_no_people_and_no_classes() -> None:
    ma = MA(layouts.NONE, trunk="resnet18")
    output = ma(torch.zeros(0, 1, 3, 32, 16), torch.zeros(0, 32, 16, dtype=torch.uint8))
    assert output.logits is None
    assert output.features.shape == output.embeddings.shape == (0, 1, 512)
    assert output.visible.shape == (0, 1)
    assert not ma.neck.running_mean.any()
    with pytest.raises(ValueError, match="pooling must be one of mean, max, gem, not 'sum'"):
        MA(layouts.NONE, trunk="resnet18", pooling="sum")
