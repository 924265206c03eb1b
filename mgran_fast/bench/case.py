"""A race that can be run: who takes part, what it is about, and how it is made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgran_fast.alignment import resize
from mgran_fast.bench import peers
from mgran_fast.data.synthetic import render
from mgran_fast.engine.engine import Engine
from mgran_fast.engine.optimize import calibrate, optimize
from mgran_fast.model import MGRAN
from mgran_fast.train.precision import computes_bf16

#: The contestant that the others are compared with.
OURS = "ours"


class DifferentAnswerError(AssertionError):
    """A contestant computes something else than ours."""


@dataclass(frozen=True)
class Sizes:
    """How much each race handles.

    Attributes:
        people: of a call of a network.
        crops: of a call of an op.
        one_by_one: crops of a call where torchvision's detectors take part, which need seconds for each.
        batches: people of a call, where cost grows with them.
        alone: the largest of them that one thread is asked for.
        boxes: people in a frame.
        frame: its height and width.
        queries, gallery: that are ranked.
        reranked: queries and gallery that are re-ranked.
        galleries: entries, where cost grows with them.
        asked: queries to those.
        width: numbers of an embedding that is searched for.
        detector: pixels that torchvision's detectors enlarge a crop to.
    """

    people: int = 8
    crops: int = 64
    one_by_one: int = 2
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    alone: int = 16
    boxes: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    frame: tuple[int, int] = (1080, 1920)
    queries: int = 3368
    gallery: int = 15913
    reranked: tuple[int, int] = (500, 3000)
    galleries: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    asked: int = 32
    width: int = 256
    detector: int = 800


FULL = Sizes()
#: For a first look: the same races on less, without what takes long to be made.
QUICK = Sizes(
    people=2, crops=24, one_by_one=1, batches=(1, 2, 4), alone=2, boxes=(1, 10, 100), queries=500, gallery=4000,
    reranked=(100, 500), galleries=(1_000, 10_000, 100_000), asked=8,
)  # fmt: skip


@dataclass
class Setting:
    """What races share: the model and what is made of it, drawn people, a scratch folder.

    Attributes:
        model: in eval mode, on the device that is measured.
        folder: for files, gone afterwards.
        sizes: how much each race handles.
        paces: seconds that the race before took for one more on its axis, by name, threads and contestant.
    """

    model: MGRAN
    folder: Path
    sizes: Sizes = FULL
    paces: dict[tuple[str, int | None, str], float] = field(default_factory=dict)
    _made: dict[object, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What ``make`` gives; the same again for the same key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def people(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Drawn people of the model's size: crops uint8 [N, H, W, 3], masks float32 [N, H, W], keypoints [N, 17, 3].

        No more than 32 are drawn; then they come again.
        """

        def drawn() -> list[torch.Tensor]:
            views = [render(person, 0, 0, size=self.model.size) for person in range(32)]
            return [torch.from_numpy(np.stack([getattr(view, name) for view in views])).to(self.device)
                    for name in ("crop", "mask", "keypoints")]  # fmt: skip

        index = torch.arange(count, device=self.device) % 32
        crops, masks, keypoints = (all_[index] for all_ in self.once("people", drawn))
        return resize(crops, self.model.size), masks, keypoints

    def aligned(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops, and their region maps uint8 [N, H, W]."""
        crops, masks, keypoints = self.people(count)
        return crops, self.model.alignment.regions(masks, keypoints)

    def engine(self, precision: str) -> Engine:
        """Of the model, made once."""

        def made() -> Engine:
            crops, region_map = self.aligned(min(16, max(2, self.sizes.people)))
            needed = precision == "int8"
            calibration = calibrate(self.model, crops, region_map=region_map) if needed else None
            return optimize(self.model, precision, calibration=calibration)

        found: Engine = self.once(("engine", precision), made)
        return found


@dataclass
class Prepared:
    """What a case is when it is about to run.

    Attributes:
        contestants: functions that do the same thing.
        alike: whether an answer says what ours says, called with ours and the other's; None where nothing can be
            compared, and the case says why.
        count: how many people, queries ... one call handles.
        operations: 2 for each multiply-add of ours; None where they were not counted.
        bytes: that must be read and written at least.
    """

    contestants: Mapping[str, Callable[[], object]]
    alike: Callable[[Any, Any], bool] | None
    count: int
    operations: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Case:
    """A race.

    Attributes:
        group: ops, MRA, MA, training, ranking, pipeline, growth.
        name: what is done.
        contestants: the names of all who take part where everything is installed; ours is among them.
        make: prepares the race for those who are there.
        at: what it is done with: people, precision, gallery ...
        threads: of the CPU; None leaves torch's number.
        rounds: rounds that are not counted, at least and at most; None leaves it to the time. Answers are compared
            after the first round, counted or not.
        axis: the circumstance that grows from race to race of a curve; empty where there is none.
        needs: modules that ours wants, of the extra "train".
        without: contestants that would be no peers here -> why.
    """

    group: str
    name: str
    contestants: tuple[str, ...]
    make: Callable[[Setting, Sequence[str]], Prepared]
    at: Mapping[str, int | str] = field(default_factory=dict)
    threads: int | None = None
    rounds: tuple[int, int, int] | None = None
    axis: str = ""
    needs: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and circumstances, which no other race has."""
        about = [f"{value} {key}" if isinstance(value, int) else str(value) for key, value in self.at.items()]
        threads = [] if self.threads is None else [f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        return ", ".join([self.name, *about, *threads])

    @property
    def size(self) -> int:
        """What it is on the axis; 0 without one."""
        return int(self.at[self.axis]) if self.axis else 0

    def why_not(self, contestant: str, device: str) -> str:
        """Why a contestant does not take part; empty when it does."""
        gone = peers.missing(*self.needs)
        if gone:
            return f"{', '.join(gone)} not installed: pip install 'mgran_fast[train]'"
        if contestant in self.without:
            return self.without[contestant]
        return "" if contestant == OURS else peers.why_not(contestant, device)


def best_precision(device: str) -> str:
    """What torch computes fastest on "cpu" or "cuda": bfloat16 where the device has instructions for it."""
    return "bfloat16" if computes_bf16(device) else "float32"


def close(tolerance: float) -> Callable[[Any, Any], bool]:
    """Answers whose largest difference is at most ``tolerance``; NaN is never close."""

    def alike(ours: Any, theirs: Any) -> bool:
        pairs = zip(_tensors(ours), _tensors(theirs), strict=True)
        return all(a.shape == b.shape and bool(((a.float() - b.float()).abs() <= tolerance).all()) for a, b in pairs)

    return alike


def same_direction(cosine: float) -> Callable[[Any, Any], bool]:
    """Embeddings [N, D] whose cosine is at least ``cosine``, row by row."""

    def alike(ours: Any, theirs: Any) -> bool:
        return bool((torch.cosine_similarity(ours.float(), theirs.float()) >= cosine).all())

    return alike


def no_grad(run: Callable[[], object]) -> Callable[[], object]:
    """The same without gradients."""

    @functools.wraps(run)
    def quiet() -> object:
        with torch.no_grad():
            return run()

    return quiet


def _tensors(answer: Any) -> list[torch.Tensor]:
    if isinstance(answer, (tuple, list)):
        return [tensor for one in answer for tensor in _tensors(one)]
    return [torch.as_tensor(answer)]
