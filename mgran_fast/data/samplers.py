"""Batches of P people with K pictures each, as losses over pairs and triplets want them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler


class PKBatchSampler(Sampler[list[int]]):
    """Every batch holds P different people and K pictures of each (Hermans et al., arXiv:1703.07737).

    Within an epoch every person comes once before any comes again, and each person's pictures are cycled through
    in a shuffled order. Pictures repeat within a batch only when a person has fewer than K. The batches depend on
    ``seed`` and the epoch alone, so a resumed run continues as the whole one would have; without
    :meth:`set_epoch` every pass is the same. On several ranks give each rank a seed of its own.

    Args:
        labels: the person of each picture, any integers; index i is picture i of the data set.
        people: P, the number of people in a batch, 1 or more.
        pictures: K, the number of pictures of each, 1 or more.
        seed: 0 or more.
        batches: the batches of an epoch; by default as many as it takes to show as many pictures as there are.

    Raises:
        ValueError: fewer people than P, or a number out of its range.
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[np.integer] | torch.Tensor,
        people: int,
        pictures: int,
        *,
        seed: int = 0,
        batches: int | None = None,
    ) -> None:
        for name, value, least in (("people", people, 1), ("pictures", pictures, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if batches is not None and batches < 1:
            raise ValueError(f"batches must be 1 or more, not {batches}")
        array = np.asarray(labels)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"labels must be integers [N], not {array.dtype} {list(array.shape)}")
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
        self.seed = seed
        self.epoch = 0
        self.batches = batches if batches is not None else -(-array.size // (people * pictures))

    @property
    def sampler(self) -> PKBatchSampler:
        """This object: trainers reach the epoch by ``dataloader.batch_sampler.sampler.set_epoch``.

        That is the path PyTorch's own BatchSampler gives, which wraps a sampler; here both are one.
        """
        return self

    @property
    def batch_size(self) -> int:
        """The number of pictures of a batch, P * K."""
        return self.people * self.pictures

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0 or more, that the next iteration shows."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, not {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        people = _Cycle(np.arange(len(self._pictures_of)), rng)
        pictures: dict[int, _Cycle] = {}
        for _ in range(self.batches):
            batch: list[int] = []
            for person in people.take(self.people):
                if person not in pictures:
                    pictures[person] = _Cycle(self._pictures_of[person], rng)
                batch += pictures[person].take(self.pictures)
            yield batch


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
