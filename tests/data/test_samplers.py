"""P people, K pictures each: what every batch and every epoch must hold."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from mgran_fast.data import PKBatchSampler


@settings(max_examples=60)
@given(data=st.data())
def test_every_batch_has_p_people_and_k_pictures(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    labels = data.draw(st.permutations([3 * person - 5 for person, n in enumerate(counts) for _ in range(n)]))
    people, pictures = data.draw(st.integers(1, len(counts))), data.draw(st.integers(1, 5))
    sampler = PKBatchSampler(labels, people, pictures, seed=data.draw(st.integers(0, 99)))
    of = Counter(labels)
    batches = list(sampler)
    assert len(batches) == len(sampler) == -(-len(labels) // (people * pictures))
    for batch in batches:
        seen = Counter(labels[index] for index in batch)
        assert len(seen) == people
        assert set(seen.values()) == {pictures}
        for index, times in Counter(batch).items():
            # Repeated only where there are not enough, and then evenly.
            n = of[labels[index]]
            assert pictures // n <= times <= -(-pictures // n)
        assert len(set(batch)) == sum(min(pictures, of[person]) for person in seen)


@settings(max_examples=40)
@given(n=st.integers(1, 12), people=st.integers(1, 12), seed=st.integers(0, 99))
def test_everybody_comes_once_before_anybody_comes_twice(n: int, people: int, seed: int) -> None:
    people = min(people, n)
    sampler = PKBatchSampler(range(n), people, 1, seed=seed, batches=3 * n)
    shown: Counter[int] = Counter(dict.fromkeys(range(n), 0))
    for batch in sampler:
        shown.update(batch)
        # Within a batch people differ, so somebody may wait at the seam of two rounds: one round at most.
        assert max(shown.values()) - min(shown.values()) <= (1 if n % people == 0 else 2)
    assert min(shown.values()) >= 1


def test_all_pictures_of_a_person_are_used() -> None:
    sampler = PKBatchSampler([0] * 10 + [1] * 7, 2, 4, batches=3)
    used = {index for batch in sampler for index in batch}
    assert used == set(range(17))


def test_an_epoch_follows_from_seed_and_epoch_alone() -> None:
    labels = np.repeat(np.arange(20), 5)
    a, b = PKBatchSampler(labels, 4, 3, seed=7), PKBatchSampler(torch.from_numpy(labels), 4, 3, seed=7)
    first = list(a)
    assert first == list(a) == list(b)
    list(b)
    b.set_epoch(3)
    a.set_epoch(3)
    assert list(a) == list(b) == list(pickle.loads(pickle.dumps(a)))
    assert list(a) != first
    a.set_epoch(0)
    assert list(a) == first
    assert list(PKBatchSampler(labels, 4, 3, seed=8)) != first


def test_a_half_used_pass_leaves_no_trace() -> None:
    sampler = PKBatchSampler([0, 0, 1, 1, 2], 2, 2)
    whole = list(sampler)
    next(iter(sampler))
    assert list(sampler) == whole


def test_through_a_loader() -> None:
    sampler = PKBatchSampler([0, 0, 1, 1, 2, 2], 2, 2, batches=4)
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_sampler=sampler)
    assert len(loader) == 4
    assert [row[0].tolist() for row in loader] == list(sampler)
    # The path by which trainers tell the epoch.
    loader.batch_sampler.sampler.set_epoch(5)
    assert sampler.epoch == 5
    assert sampler.batch_size == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"people": 4}, "a batch needs 4 different people, there are 3; lower people"),
        ({"labels": []}, "there are 0"),
        ({"people": 0}, "people must be 1 or more"),
        ({"pictures": 0}, "pictures must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"batches": 0}, "batches must be 1 or more"),
        ({"labels": [0.5, 1.5]}, "labels must be integers"),
        ({"labels": [[0, 1]]}, "labels must be integers"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PKBatchSampler(**{"labels": [0, 0, 1, 2], "people": 2, "pictures": 2, **arguments})  # type: ignore[arg-type]


def test_epoch_is_checked() -> None:
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        PKBatchSampler([0, 1], 1, 1).set_epoch(-1)
