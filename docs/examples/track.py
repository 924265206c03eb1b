"""Tracks people through an occlusion: boxes in, identities out, with MGRAN's embeddings to find again who was hidden.

    python docs/examples/track.py --checkpoint runs/demo/model.safetensors                  # drawn people
    python docs/examples/track.py --checkpoint runs/demo/model.safetensors --no-appearance  # by boxes alone
    python docs/examples/track.py --checkpoint FILE --frames FOLDER --boxes det.txt         # your own

Files of boxes and tracks are in MOTChallenge's form, a line for each box: frame (from 1), identity, left, top, width,
height, confidence and more. The tracker is small on purpose: a box goes to the track that it overlaps, and one that
overlaps none to the lost track that looks most like it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from mgran_fast import DataError, FeatureExtractor, MGRANError
from mgran_fast.data.pictures import read_picture
from mgran_fast.data.synthetic import render

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]
#: A box overlaps a track from this intersection over union on.
OVERLAP = 0.3
#: Share of a drawn person that must be seen for a box, as of a detector that misses the others.
SEEN = 0.5


@dataclass(frozen=True)
class Frame:
    """Pixels uint8 [H, W, 3], RGB; boxes float32 [N, 4], left, top, right, bottom; who they are, where it is known."""

    pixels: Pixels
    boxes: Boxes
    people: tuple[int, ...] = ()


@dataclass
class Track:
    """One identity: its last box, the frame of it, and the mean of what it looked like."""

    identity: int
    box: Boxes
    seen: int
    vector: torch.Tensor | None


class Tracker:
    """Gives each box of each frame an identity.

    Args:
        distance: largest cosine distance at which a lost track is found again; None: by overlap alone.
        memory: frames for which a lost track is kept.
    """

    def __init__(self, distance: float | None, memory: int = 60) -> None:
        self.distance, self.memory = distance, memory
        self.frame, self.made = 0, 0
        self.tracks: list[Track] = []

    def update(self, boxes: Boxes, vectors: torch.Tensor | None) -> list[int]:
        """The identity, from 1, of each of a frame's boxes; ``vectors`` float [N, D] of unit norm."""
        self.tracks = [track for track in self.tracks if self.frame - track.seen <= self.memory]
        owners: dict[int, Track] = {}
        for _, place, number in sorted(self._pairs(boxes, vectors)):
            track = self.tracks[number]
            if place not in owners and track.seen < self.frame:
                owners[place] = track
                track.box, track.seen = boxes[place], self.frame
                if vectors is not None and track.vector is not None:
                    track.vector = torch.nn.functional.normalize(0.9 * track.vector + 0.1 * vectors[place], dim=0)
        for place in range(len(boxes)):
            if place not in owners:
                self.made += 1
                owners[place] = Track(self.made, boxes[place], self.frame, None if vectors is None else vectors[place])
                self.tracks.append(owners[place])
        self.frame += 1
        return [owners[place].identity for place in range(len(boxes))]

    def _pairs(self, boxes: Boxes, vectors: torch.Tensor | None) -> Iterator[tuple[float, int, int]]:
        """(cost, box, track) of the pairs that may belong together."""
        for number, track in enumerate(self.tracks):
            shared = overlaps(boxes, track.box)
            in_sight = track.seen == self.frame - 1
            for place in range(len(boxes)):
                cost = 1 - float(shared[place])
                if vectors is None or track.vector is None or self.distance is None:
                    if shared[place] >= OVERLAP:
                        yield cost, place, number
                    continue
                unlike = 1 - float(vectors[place] @ track.vector)
                # Who was in sight a moment ago has moved little. For all others looks alone decide, and come after.
                if in_sight and shared[place] >= OVERLAP:
                    yield cost + unlike, place, number
                elif unlike <= self.distance:
                    yield 3 + unlike, place, number


def overlaps(boxes: Boxes, box: Boxes) -> Boxes:
    """Intersection over union, float32 [N], of boxes [N, 4] with one."""
    corner = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = corner.clip(0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
    return np.asarray(shared / union, np.float32)


def drawn(cast: int = 0) -> Iterator[Frame]:
    """90 frames of four drawn people, 480x240 pixels; another ``cast`` is four others.

    The first walks to the right, stays hidden behind the second for a while, and walks on; the third crosses in front
    of both; the fourth comes into the picture while the first is hidden.
    """
    height, width, tall, wide = 240, 480, 176, 88
    steps = np.arange(90)
    # Left edges, frame by frame, and the upper one. Who comes later in the list stands in front.
    paths = [
        (np.clip(steps * 4, 0, 192) + np.clip((steps - 70) * 6, 0, 120), 40),
        (np.full(90, 196), 50),
        (400 - steps * 5, 58),
        (np.maximum(480 - np.clip(steps - 50, 0, None) * 4, 390), 54),
    ]
    # People whom no data set of the command line holds.
    views = [whole_views(1000 + 4 * cast + person, (tall, wide)) for person in range(len(paths))]
    usual = [np.mean([mask.sum() for _, mask in some]) for some in views]
    ground = np.linspace(150, 90, height)[:, None, None] * np.array([0.9, 1.0, 0.95])
    ground = ground + np.random.default_rng(0).normal(0, 6, (height, width, 1))
    for step in steps:
        pixels, shares = ground.copy(), np.zeros((len(paths), height, width))
        for person, (path, top) in enumerate(paths):
            # Another view every five frames: people move their limbs, and turn.
            crop, mask = views[person][step // 5 % len(views[person])]
            left, right = max(path[step], 0), min(path[step] + wide, width)
            if left < right:
                columns = slice(left - path[step], right - path[step])
                share = mask[:, columns, None]
                there = pixels[top : top + tall, left:right]
                there += share * (crop[:, columns] - there)
                shares[:, top : top + tall, left:right] *= 1 - share[..., 0]
                shares[person, top : top + tall, left:right] = share[..., 0]
        people = [i for i, share in enumerate(shares) if share.sum() >= SEEN * usual[i]]
        boxes = [around(shares[i] > 0.5) for i in people]
        yield Frame(pixels.clip(0, 255).astype(np.uint8), np.array(boxes, np.float32).reshape(-1, 4), tuple(people))


def whole_views(person: int, size: tuple[int, int]) -> list[tuple[Pixels, npt.NDArray[np.float32]]]:
    """Crop and mask of four views of one person: of ten those that hide the fewest keypoints."""
    views = [render(person, 1, number, size=size) for number in range(10)]
    views.sort(key=lambda view: -int((view.keypoints[:, 2] > 0.5).sum()))
    return [(view.crop, view.mask) for view in views[:4]]


def around(shown: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that are True."""
    rows, columns = np.nonzero(shown)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def recorded(folder: Path, boxes: Path, confidence: float) -> Iterator[Frame]:
    """The pictures of a folder in the order of their names, with the boxes of a MOTChallenge file."""
    if not folder.is_dir() or not boxes.is_file():
        raise DataError(f"{folder}, {boxes}: --frames wants a folder that is there, and --boxes a file")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not pictures:
        raise DataError(f"{folder}: no picture; --frames wants a folder of .jpg or .png, one a frame")
    found = defaultdict(list)
    for number, line in enumerate(boxes.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = [float(value) for value in line.split(",")[:7]]
            frame, _, left, top, wide, tall, score = values
        except ValueError:
            raise DataError(f"{boxes}, line {number}: wanted frame,id,left,top,width,height,confidence") from None
        if score >= confidence:
            found[int(frame)].append((left, top, left + wide, top + tall))
    for number, path in enumerate(pictures, 1):
        yield Frame(read_picture(path), np.array(found[number], np.float32).reshape(-1, 4))


def line(frame: int, identity: int, box: Boxes) -> str:
    left, top, right, bottom = (float(value) for value in box)
    return f"{frame},{identity},{left:.1f},{top:.1f},{right - left:.1f},{bottom - top:.1f},1,-1,-1,-1"


def tell(history: dict[int, list[tuple[int, int]]]) -> bool:
    """Print each person's identities before and after being hidden; whether everybody kept one of their own."""
    table = Table("person", "seen in frames", "identity before", "after being hidden")
    kept = [{identity for _, identity in entries} for entries in history.values()]
    for person, entries in sorted(history.items()):
        frames = [frame for frame, _ in entries]
        # The longest time out of sight.
        gap = max(range(1, len(frames)), key=lambda i: frames[i] - frames[i - 1], default=0)
        hidden = bool(gap) and frames[gap] - frames[gap - 1] > 1
        before, after = (entries[:gap], entries[gap:]) if hidden else (entries, [])
        shown = f"{frames[0]} to {frames[-1]}" + (
            f", hidden {frames[gap - 1] + 1} to {frames[gap] - 1}" if hidden else ""
        )
        table.add_row(str(person + 1), shown, *(", ".join(map(str, unique(part))) or "-" for part in (before, after)))
    Console().print(table)
    return all(len(some) == 1 for some in kept) and len(set().union(*kept)) == len(kept)


def unique(entries: Iterable[tuple[int, int]]) -> list[int]:
    return list(dict.fromkeys(identity for _, identity in entries))


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where drawn people lost their identities."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a model of mgran-fast train or make demo")
    parser.add_argument("--no-appearance", action="store_true", help="by overlap alone, for the contrast")
    parser.add_argument("--distance", type=float, default=0.7, help="largest cosine distance of a lost track (0.7)")
    parser.add_argument("--cast", type=int, default=0, help="which four people are drawn")
    parser.add_argument("--frames", type=Path, help="a folder of pictures in place of drawn people")
    parser.add_argument("--boxes", type=Path, help="their boxes, in MOTChallenge's form")
    parser.add_argument("--confidence", type=float, default=0.5, help="least confidence of a box of --boxes (0.5)")
    parser.add_argument("--output", type=Path, default=Path("runs/tracks.txt"), help="tracks, in MOTChallenge's form")
    options = parser.parse_args(arguments)
    if (options.frames is None) != (options.boxes is None):
        parser.error("--frames and --boxes go together")
    extractor = None if options.no_appearance else FeatureExtractor(options.checkpoint)
    tracker = Tracker(None if options.no_appearance else options.distance)
    history: dict[int, list[tuple[int, int]]] = defaultdict(list)
    lines = []
    frames = (
        drawn(options.cast) if options.frames is None else recorded(options.frames, options.boxes, options.confidence)
    )
    for number, frame in enumerate(frames, 1):
        vectors = None if extractor is None else extractor(frame.pixels, boxes=frame.boxes).cpu()
        identities = tracker.update(frame.boxes, vectors)
        lines += [line(number, *entry) for entry in zip(identities, frame.boxes, strict=True)]
        for person, identity in zip(frame.people, identities, strict=False):
            history[person].append((number, identity))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")
    console = Console()
    console.print(f"{tracker.made} identities; tracks in {options.output}")
    if not history:
        return 0
    kept = tell(history)
    console.print("everybody kept one identity" if kept else "identities were lost or exchanged")
    return 0 if kept else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except MGRANError as problem:
        raise SystemExit(f"track.py: {problem}") from None
