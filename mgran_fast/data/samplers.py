"""Batches of P people with K pictures each, as losses over pairs and triplets want them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

Numbers = Sequence[int] | NDArray[np.integer] | torch.Tensor

#: The ways of choosing, by name.
KINDS = ("pk", "balanced", "camera")


def build(
    kind: str,
    labels: Numbers,
    cameras: Numbers,
    people: int,
    pictures: int,
    *,
    seed: int = 0,
    batches: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> PKBatchSampler:
    """The sampler named ``kind``: pk, balanced or camera. Raises ValueError as the samplers do."""
    if kind not in KINDS:
        raise ValueError(f"the sampler must be one of {', '.join(KINDS)}, not {kind!r}")
    if kind == "camera":
        return CameraBatchSampler(
            labels, people, pictures, cameras=cameras, seed=seed, batches=batches, rank=rank, world=world
        )
    chosen = BalancedBatchSampler if kind == "balanced" else PKBatchSampler
    return chosen(labels, people, pictures, seed=seed, batches=batches, rank=rank, world=world)


class PKBatchSampler(Sampler[list[int]]):
    """Every batch holds P different people and K pictures of each (Hermans et al., arXiv:1703.07737).

    Within an epoch every person comes once before any comes again, and each person's pictures are cycled through
    in a shuffled order. Pictures repeat within a batch only when a person has fewer than K. The batches depend on
    ``seed`` and the epoch alone, so a resumed run continues as the whole one would have; without
    :meth:`set_epoch` every pass is the same.

    On several ranks each sees a part of the people of every batch, and all ranks together, in their order, what one
    process sees.

    Args:
        labels: the person of each picture, any integers; index i is picture i of the data set.
        people: P, the number of people in a batch, 1 or more.
        pictures: K, the number of pictures of each, 1 or more.
        seed: 0 or more.
        batches: the batches of an epoch; by default as many as it takes to show as many pictures as there are.
        rank: of this process, from 0 on.
        world: the number of processes; P must be a multiple of it.

    Attributes:
        start: how many batches of the epoch are left out at its start, see :meth:`skip`.

    Raises:
        ValueError: fewer people than P, or a number out of its range.
    """

    def __init__(
        self,
        labels: Numbers,
        people: int,
        pictures: int,
        *,
        seed: int = 0,
        batches: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        for name, value, least in (("people", people, 1), ("pictures", pictures, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if batches is not None and batches < 1:
            raise ValueError(f"batches must be 1 or more, not {batches}")
        array = _integers(labels, "labels")
        _, place = np.unique(array, return_inverse=True)
        order = np.argsort(place, kind="stable")
        self._pictures_of = np.split(order, np.flatnonzero(np.diff(place[order])) + 1) if array.size else []
        if len(self._pictures_of) < people:
            raise ValueError(
                f"a batch needs {people} different people, there are {len(self._pictures_of)}; "
                "lower people or add training data"
            )
        self.people = people
        self.pictures = pictures
        self.share(rank, world)
        self.seed = seed
        self.epoch = 0
        self.start = 0
        self.batches = batches if batches is not None else -(-array.size // (people * pictures))

    @property
    def sampler(self) -> PKBatchSampler:
        """This object: trainers reach the epoch by ``dataloader.batch_sampler.sampler.set_epoch``.

        That is the path PyTorch's own BatchSampler gives, which wraps a sampler; here both are one.
        """
        return self

    @property
    def batch_size(self) -> int:
        """The number of pictures of a batch on this rank, P * K on one alone."""
        if self.people % self.world:
            raise ValueError(
                f"{self.people} people cannot be divided among {self.world} processes; take a multiple of {self.world}"
            )
        return self.people // self.world * self.pictures

    @property
    def mine(self) -> slice:
        """Where this rank's pictures lie in a batch of :meth:`whole`."""
        return slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0 or more, that the next iteration shows, from its start if it is another one."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, not {epoch}")
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch

    def share(self, rank: int, world: int) -> None:
        """Show what rank ``rank`` of ``world`` processes sees from now on. Raises ValueError as the constructor."""
        if world < 1:
            raise ValueError(f"world must be 1 or more, not {world}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}), not {rank}")
        self.rank, self.world = rank, world
        # Asked for its error.
        _ = self.batch_size

    def skip(self, batches: int) -> None:
        """Leave out so many batches at the start of this epoch; the others are what they are without that."""
        if not 0 <= batches <= self.batches:
            raise ValueError(f"an epoch of {self.batches} batches cannot begin after {batches}")
        self.start = batches

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        mine = self.mine
        for batch in islice(self.whole(), self.start, None):
            yield batch[mine]

    def whole(self) -> Iterator[list[int]]:
        """All batches of the epoch, each with the pictures of all ranks, one person after the other."""
        rng = np.random.default_rng((self.seed, self.epoch))
        people = _Cycle(np.arange(len(self._pictures_of)), rng)
        pictures: dict[int, _Cycle | _CameraCycle] = {}
        for _ in range(self.batches):
            batch: list[int] = []
            for person in people.take(self.people):
                if person not in pictures:
                    pictures[person] = self._cycle(person, rng)
                batch += pictures[person].take(self.pictures)
            yield batch

    def _cycle(self, person: int, rng: np.random.Generator) -> _Cycle | _CameraCycle:
        return _Cycle(self._pictures_of[person], rng)


class CameraBatchSampler(PKBatchSampler):
    """As :class:`PKBatchSampler`, and a person's K pictures come from as many cameras as there are.

    Cameras are cycled through in a shuffled order, and each camera's pictures. A camera gives a second picture only
    when all others gave one, or have no more.

    Args:
        cameras: the camera of each picture, any integers.
    """

    def __init__(
        self,
        labels: Numbers,
        people: int,
        pictures: int,
        *,
        cameras: Numbers,
        seed: int = 0,
        batches: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(labels, people, pictures, seed=seed, batches=batches, rank=rank, world=world)
        self._cameras = _integers(cameras, "cameras")
        if len(self._cameras) != sum(map(len, self._pictures_of)):
            raise ValueError(f"{len(labels)} labels and {len(self._cameras)} cameras: one for each picture is wanted")

    def _cycle(self, person: int, rng: np.random.Generator) -> _CameraCycle:
        mine = self._pictures_of[person]
        seen_by = self._cameras[mine]
        return _CameraCycle([mine[seen_by == camera] for camera in np.unique(seen_by)], rng)


class BalancedBatchSampler(PKBatchSampler):
    """As :class:`PKBatchSampler`, but an epoch goes on where the one before ended.

    So over a whole run everybody comes equally often, up to once, however few batches an epoch has. (By
    :class:`PKBatchSampler` each epoch begins anew, and who comes once more than others is left to chance.) Pictures of
    a person come equally often too, but for those that do not fill the last K of a shuffled order.
    """

    def whole(self) -> Iterator[list[int]]:
        first = self.epoch * self.batches * self.people
        slots = iter(self._slots(first, self.batches * self.people))
        for _ in range(self.batches):
            yield [index for person, turn in islice(slots, self.people) for index in self._taken(person, turn)]

    def _slots(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """So many people from place ``first`` of the run on, each with how often it came before."""
        total, last = len(self._pictures_of), first + count
        rng = np.random.default_rng((self.seed, 2))
        before = np.empty(0, np.int64)
        # From the start of the run: whom a round may begin with depends on how the one before ended.
        for turn in range(-(-last // total)):
            start = turn * total
            order = rng.permutation(total)
            begun = start % self.people
            if begun:
                # A batch is half full with people of the round before.
                free = order[~np.isin(order, before[-begun:])][: self.people - begun]
                order = np.concatenate([free, order[~np.isin(order, free)]])
            before = order
            for place in range(max(first, start), min(last, start + total)):
                yield int(order[place - start]), turn

    def _taken(self, person: int, turn: int) -> list[int]:
        """A person's pictures when it comes for the time ``turn``, from 0 on."""
        mine = self._pictures_of[person]
        # Of a shuffled order K, and K, and K ...
        parts = max(1, len(mine) // self.pictures)
        number, part = divmod(turn, parts)
        order = np.random.default_rng((self.seed, 3, person, number)).permutation(mine)
        taken: list[int] = np.resize(order[part * self.pictures :], self.pictures).tolist()
        return taken


def _integers(values: Numbers, name: str) -> NDArray[np.integer]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be integers [N], not {array.dtype} {list(array.shape)}")
    return array


class _Cycle:
    """Hands items out in a shuffled order, and in a new one when all are out."""

    def __init__(self, items: NDArray[np.integer], rng: np.random.Generator) -> None:
        self._items = items
        self._rng = rng
        self._queue: list[int] = []

    def take(self, count: int) -> list[int]:
        """The next ``count`` items; none comes a second time before all came once."""
        taken: list[int] = []
        while len(taken) < count:
            # At the seam of two orders an item that was just taken waits; it keeps its place in the queue.
            rounds = len(taken) // len(self._items)
            place = next((i for i, item in enumerate(self._queue) if taken.count(item) == rounds), None)
            if place is None:
                self._queue += self._rng.permutation(self._items).tolist()
            else:
                taken.append(self._queue.pop(place))
        return taken


class _CameraCycle:
    """Hands pictures out from as many cameras as there are."""

    def __init__(self, of_camera: Sequence[NDArray[np.integer]], rng: np.random.Generator) -> None:
        self._cameras = _Cycle(np.arange(len(of_camera)), rng)
        self._sizes = [len(pictures) for pictures in of_camera]
        self._pictures = [_Cycle(pictures, rng) for pictures in of_camera]

    def take(self, count: int) -> list[int]:
        """The next ``count`` pictures; none comes a second time before all came once."""
        order = self._cameras.take(min(count, len(self._sizes)))
        wanted = dict.fromkeys(order, 0)
        rounds, left = 1, count
        while left:
            more = [camera for camera in order if wanted[camera] < rounds * self._sizes[camera]][:left]
            for camera in more:
                wanted[camera] += 1
            left -= len(more)
            # All pictures are out: each may come once more.
            rounds += not more
        return [index for camera in order for index in self._pictures[camera].take(wanted[camera])]
