"""How cost grows: with people in a call, with boxes of a frame, with the gallery. Each size is a race of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from mgran_fast.bench import peers
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, best_precision, same_direction
from mgran_fast.bench.suite import ops, ranking
from mgran_fast.bench.suite.ma import COSINE, DTYPES, EAGER, HINTS, OPENVINO, images_of

#: The largest batch that a general engine is built for; more people go through it by so many.
STATIC = 8
#: People whose call takes so long, on all threads, that nothing is gained by a round before.
LONG = 32
#: What a race's sizes are called, by its name: the axis of its curve.
AXES = {
    "embedding, more people": "people", "crops of a frame": "boxes", "search, larger gallery": "gallery",
    "ranking, larger gallery": "gallery",
}  # fmt: skip


def cases(sizes: Sizes, *, quick: bool, device: str) -> list[Case]:
    """A race for each size of each curve."""
    found = []
    embedding, crops, search, ranked = AXES
    general = (OURS, EAGER) if quick or device == "cuda" else (OURS, EAGER, OPENVINO)
    precision = best_precision(device)
    for threads in (None, 1) if device == "cpu" else (None,):
        for people in sizes.batches:
            if threads is None or people <= sizes.alone:
                # Calls of seconds are timed once, the longest not even warmed: smaller sizes have done that.
                long = people >= (LONG if threads is None else LONG // 2)
                rounds = (0, 1, 1) if long else (1, 3, 9) if people < STATIC else (1, 2, 3)
                found.append(Case("growth", embedding, general, _engine(people, precision),
                                  {"people": people, "precision": precision}, threads,
                                  (1, 2, 3) if quick else rounds, AXES[embedding]))  # fmt: skip
    quickly = (2, 3, 15)
    for boxes in sizes.boxes:
        names = (OURS, "OpenCV", ops.PLAIN)
        found.append(Case("growth", crops, names, ops.cut_out(boxes), {"boxes": boxes}, rounds=quickly,
                          axis=AXES[crops]))  # fmt: skip
    for gallery in sizes.galleries:
        at = {"queries": sizes.asked, "gallery": gallery}
        found.append(Case("growth", search, (OURS, "NumPy", ranking.FAISS), ranking.searched(sizes.asked, gallery), at,
                          rounds=quickly, axis=AXES[search]))  # fmt: skip
        found.append(Case("growth", ranked, (OURS, ranking.NUMPY), ranking.ranked(sizes.asked, gallery), at,
                          rounds=(1, 2, 15), axis=AXES[ranked]))  # fmt: skip
    return found


def _engine(people: int, precision: str) -> Callable[[Setting, Sequence[str]], Prepared]:
    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        model, dtype = setting.model, DTYPES[precision]
        crops, region_map = setting.aligned(people)
        engine = setting.engine(precision)
        ways: dict[str, Callable[[], torch.Tensor]] = {OURS: lambda: engine(crops, region_map=region_map)}
        if EAGER in names:
            trunk = setting.once("eager", lambda: peers.eager(model, dtype))
            ways[EAGER] = peers.around(model, trunk, dtype, crops, region_map)
        if OPENVINO in names:
            ways[OPENVINO] = _by_eights(setting, precision, crops, region_map)
        return Prepared(ways, same_direction(COSINE[precision]), people)

    return make


def _by_eights(
    setting: Setting, precision: str, crops: torch.Tensor, region_map: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """OpenVINO with static batches, which it likes best."""
    threads, hint = torch.get_num_threads(), HINTS[precision]

    def trunk(count: int) -> peers.Trunk:
        path = peers.export(setting.model, images_of(setting, count), setting.folder)
        return peers.openvino(path, threads, hint)

    runs = []
    for some, maps in zip(crops.split(STATIC), region_map.split(STATIC), strict=True):
        built = setting.once((OPENVINO, len(some), threads), functools.partial(trunk, len(some)))
        runs.append(peers.around(setting.model, built, torch.float32, some, maps))
    return lambda: torch.cat([run() for run in runs])
