"""P people, K pictures each: what every batch and every epoch must hold."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from mgran_fast.data import BalancedBatchSampler, CameraBatchSampler, PKBatchSampler
from mgran_fast.data.samplers import KINDS, build


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


# --- balanced and by camera ----------------------------------------------------------------------------------


def make(kind: str, labels: list[int], people: int, pictures: int, **options: Any) -> PKBatchSampler:
    """A sampler for two cameras, in turns."""
    return build(kind, labels, [index % 2 for index in range(len(labels))], people, pictures, **options)


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(["balanced", "camera"]))
def test_batches_of_every_kind_have_p_people_and_k_pictures(data: st.DataObject, kind: str) -> None:
    counts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    labels = data.draw(st.permutations([person for person, n in enumerate(counts) for _ in range(n)]))
    people, pictures = data.draw(st.integers(1, len(counts))), data.draw(st.integers(1, 5))
    sampler = make(kind, labels, people, pictures, seed=data.draw(st.integers(0, 99)))
    sampler.set_epoch(data.draw(st.integers(0, 4)))
    of = Counter(labels)
    batches = list(sampler)
    assert len(batches) == len(sampler) == -(-len(labels) // (people * pictures))
    for batch in batches:
        seen = Counter(labels[index] for index in batch)
        assert len(seen) == people
        assert set(seen.values()) == {pictures}
        for index, times in Counter(batch).items():
            n = of[labels[index]]
            assert pictures // n <= times <= -(-pictures // n)


@settings(max_examples=40)
@given(n=st.integers(1, 12), people=st.integers(1, 12), batches=st.integers(1, 5), epochs=st.integers(1, 6))
def test_balanced_people_come_equally_often_over_the_epochs(n: int, people: int, batches: int, epochs: int) -> None:
    people = min(people, n)
    sampler = BalancedBatchSampler(range(n), people, 1, seed=3, batches=batches)
    shown: Counter[int] = Counter(dict.fromkeys(range(n), 0))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in sampler:
            shown.update(batch)
    assert sum(shown.values()) == people * batches * epochs
    assert max(shown.values()) - min(shown.values()) <= 1


def test_balanced_pictures_come_equally_often() -> None:
    """Six pictures, two at a time: in three turns each comes once."""
    sampler = BalancedBatchSampler([0] * 6 + [1] * 6, 2, 2, batches=1)
    shown: Counter[int] = Counter()
    orders = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        (batch,) = sampler
        orders.append(batch)
        shown.update(batch)
    assert shown == dict.fromkeys(range(12), 2)
    assert sorted(orders[:3]) != sorted(orders[3:]), "in another order each time"


@settings(max_examples=60)
@given(data=st.data())
def test_pictures_come_from_as_many_cameras_as_there_are(data: st.DataObject) -> None:
    cameras = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=12))
    pictures = data.draw(st.integers(1, 6))
    labels = [0] * len(cameras) + [1]
    sampler = CameraBatchSampler(labels, 1, pictures, cameras=[*cameras, 9], seed=1, batches=8)
    of_camera = Counter(cameras)
    for batch in sampler:
        if labels[batch[0]] == 1:
            continue
        seen = Counter(cameras[index] for index in batch)
        assert len(seen) == min(pictures, len(of_camera))
        assert len(set(batch)) == min(pictures, len(cameras))
        if pictures <= len(cameras):
            # One more than another camera only where that one has no more.
            most = max(seen.values())
            assert all(count >= most - 1 or count == of_camera[camera] for camera, count in seen.items())


def test_cameras_are_cycled_through() -> None:
    sampler = CameraBatchSampler([0] * 12, 1, 2, cameras=[c for c in range(6) for _ in range(2)], batches=6)
    batches = list(sampler)
    assert len({index // 2 for batch in batches[:3] for index in batch}) == 6, "every camera once in three batches"
    assert {index for batch in batches for index in batch} == set(range(12)), "and every picture in six"


# --- ranks, and an epoch begun in its middle -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_of_one_process(kind: str, world: int) -> None:
    labels = [person for person in range(11) for _ in range(3 + person % 4)]
    whole = make(kind, labels, 8, 3, seed=5)
    ranks = [make(kind, labels, 8, 3, seed=5, rank=rank, world=world) for rank in range(world)]
    for epoch in (0, 3):
        for sampler in (whole, *ranks):
            sampler.set_epoch(epoch)
        assert [sampler.batch_size for sampler in ranks] == [24 // world] * world
        parts = [list(sampler) for sampler in ranks]
        assert len({len(part) for part in (*parts, list(whole))}) == 1
        for batch, *of_ranks in zip(whole, *parts, strict=True):
            assert [index for part in of_ranks for index in part] == batch
            seen = [{labels[index] for index in part} for part in of_ranks]
            assert all(len(people) == 8 // world for people in seen)
            assert len(set().union(*seen)) == 8, "nobody is on two ranks"


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_may_begin_in_its_middle(kind: str) -> None:
    labels = [person for person in range(7) for _ in range(4)]
    sampler = make(kind, labels, 4, 2, seed=5, batches=6, rank=1, world=2)
    sampler.set_epoch(2)
    whole = list(sampler)
    for done in (0, 1, 5, 6):
        sampler.skip(done)
        sampler.set_epoch(2)
        assert list(sampler) == list(sampler) == whole[done:]
        assert len(sampler) == 6, "of a whole epoch"
    sampler.skip(3)
    sampler.set_epoch(3)
    following = list(sampler)
    assert len(following) == 6, "the next epoch is whole"
    assert following != whole
    with pytest.raises(ValueError, match="an epoch of 6 batches cannot begin after 7"):
        sampler.skip(7)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_follows_from_seed_and_epoch_alone(kind: str) -> None:
    labels = [person for person in range(9) for _ in range(5)]
    a, b = make(kind, labels, 4, 3, seed=7), make(kind, labels, 4, 3, seed=7)
    first = list(a)
    a.set_epoch(4)
    b.set_epoch(4)
    assert list(a) == list(b) == list(pickle.loads(pickle.dumps(a)))
    assert list(a) != first
    a.set_epoch(0)
    assert list(a) == first
    assert list(make(kind, labels, 4, 3, seed=8)) != first


def test_ranks_and_cameras_are_checked() -> None:
    for options, message in (
        ({"world": 4}, "6 people cannot be divided among 4 processes; take a multiple of 4"),
        ({"world": 2, "rank": 2}, r"rank must be in \[0, 2\)"),
        ({"world": 0}, "world must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            make("pk", list(range(6)), 6, 1, **options)
    later = make("pk", list(range(6)), 6, 1)
    with pytest.raises(ValueError, match="6 people cannot be divided among 4 processes"):
        later.share(0, 4)
    with pytest.raises(ValueError, match="the sampler must be one of pk, balanced, camera, not 'random'"):
        make("random", [0, 1], 1, 1)
    with pytest.raises(ValueError, match="2 labels and 3 cameras"):
        CameraBatchSampler([0, 1], 1, 1, cameras=[0, 1, 2])
    with pytest.raises(ValueError, match="cameras must be integers"):
        CameraBatchSampler([0, 1], 1, 1, cameras=[0.5, 1.5])  # type: ignore[list-item]
