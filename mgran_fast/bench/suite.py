"""What is timed: each stage on the way from pictures to a ranking, beside the plain way to do the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from mgran_fast import ops
from mgran_fast.alignment import resize
from mgran_fast.data.pictures import read_picture
from mgran_fast.data.synthetic import render
from mgran_fast.engine.optimize import calibrate, optimize
from mgran_fast.metrics.ranking import rank
from mgran_fast.model import MGRAN
from mgran_fast.reference.align import align
from mgran_fast.reference.regions import regions

#: Frames that people are cut out of, (height, width).
FRAME = (1080, 1920)
#: Queries and gallery that are ranked.
RANKED = (256, 4096)

Contestants = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """A stage.

    Attributes:
        name: what it is called.
        people: how many one call handles.
        contestants: functions that do it; the one called "ours" is this library's.
    """

    name: str
    people: int
    contestants: Contestants


def cases(model: MGRAN, people: int, precisions: tuple[str, ...] = ("float32", "bfloat16")) -> Iterator[Case]:
    """The stages, one after another, on the model's device; drawn people.

    Reading, cutting out, MRA (the estimator), regions and aligned inputs, the MA engine in each precision against the
    model in eager mode, the whole way from JPEG files to embeddings, and ranking. That the plain ways answer alike is
    for tests to say.

    Raises ValueError for a precision that there is not on this device.
    """
    device, size, layout = model.device, model.size, model.layout

    def case(name: str, contestants: Contestants) -> Case:
        return Case(name, people, {key: _ended(run, device) for key, run in contestants.items()})

    shown = [render(i, 0, 0).crop for i in range(people)]
    crops = torch.from_numpy(np.stack(shown)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jpg" for i in range(people)]
        for file, crop in zip(files, shown, strict=True):
            Image.fromarray(crop).save(file, quality=95)

        def read() -> torch.Tensor:
            return torch.from_numpy(np.stack([read_picture(file, size) for file in files]))

        def opened() -> torch.Tensor:
            pictures = [Image.open(file).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR) for file in files]
            return torch.from_numpy(np.stack([np.asarray(one) for one in pictures]))

        yield case("read JPEG", {"ours": read, "Pillow": opened})
        frame, boxes = (one.to(device) for one in _frame(people))
        yield case(
            "cut out of a frame",
            {"ours": lambda: ops.crops(frame, boxes, size), "plain torch": lambda: _cut(frame, boxes, size)},
        )
        if not layout.whole:
            yield case("MRA: masks and keypoints", {"ours": lambda: model.estimate(crops)})
        found = model.alignment.found(crops, None, None)
        yield case(
            "region maps",
            {
                "ours": lambda: ops.regions(*found, size, layout),
                "reference in plain torch": lambda: regions(*found, size, layout),
            },
        )
        small = resize(crops, size)
        yield case(
            "regions and aligned inputs",
            {
                "ours": lambda: ops.align(small, *found, layout, scale=model.scale, mean=model.mean, std=model.std),
                "reference in plain torch": lambda: align(
                    small, *found, layout.name, 0.5, 0.3, model.scale, model.mean, model.std, torch.float32
                ),
            },
        )
        region_map = model.alignment.regions(*found)
        for precision in precisions:
            yield case(f"MA engine, {precision}", _engines(model, precision, small, region_map))
        engine = optimize(model, [one for one in ("float32", *precisions) if one != "int8"][-1])
        yield case(
            f"JPEG to embeddings, {engine.precision}",
            {"ours": lambda: engine(read().to(device)), "eager": lambda: model(opened().to(device))},
        )
    yield Case("ranking", RANKED[0], _ranking())


def _engines(model: MGRAN, precision: str, crops: torch.Tensor, region_map: torch.Tensor) -> Contestants:
    calibration = calibrate(model, crops, region_map=region_map) if precision == "int8" else None
    engine = optimize(model, precision, calibration=calibration)

    def eager() -> torch.Tensor:
        half = torch.float16 if precision == "float16" else torch.bfloat16
        with torch.autocast(model.device.type, half, enabled=precision not in ("float32", "int8")):
            return model(crops, region_map=region_map)  # type: ignore[no-any-return]

    return {"ours": lambda: engine(crops, region_map=region_map), "eager": eager}


def _ranking() -> Contestants:
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.nn.functional.normalize(torch.randn(n, 2048, generator=generator)) for n in RANKED)
    people = RANKED[0] // 4
    mine, theirs = np.arange(RANKED[0]) % people, np.arange(RANKED[1]) % people

    def plain() -> list[float]:
        distances = torch.cdist(query, gallery).numpy()
        found = []
        for row, person in zip(distances, mine, strict=True):
            right = (theirs == person)[row.argsort(kind="stable")]
            found.append(float((np.cumsum(right)[right] / (1 + np.flatnonzero(right))).mean()))
        return found

    return {
        "ours": lambda: rank(
            query, gallery, query_ids=mine, gallery_ids=theirs, query_cameras=None, gallery_cameras=None
        ),
        "NumPy, a query at a time": plain,
    }


def _ended(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Without gradients, and on a GPU until the device has done it."""

    def timed() -> object:
        with torch.no_grad():
            result = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return timed


def _cut(frame: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A box after another, as one writes it."""
    planes = frame.permute(2, 0, 1)[None].float()
    cut = [planes[:, :, top:bottom, left:right] for left, top, right, bottom in boxes.int().tolist()]
    resized = [functional.interpolate(one, size, mode="bilinear") for one in cut]
    return torch.cat(resized).round().to(torch.uint8).permute(0, 2, 3, 1)


def _frame(people: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A frame of noise, and boxes spread over it."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (*FRAME, 3), dtype=torch.uint8, generator=generator)
    height = torch.randint(80, 480, (people,), generator=generator)
    left = torch.randint(0, FRAME[1] - 240, (people,), generator=generator)
    top = torch.randint(0, FRAME[0] - 480, (people,), generator=generator)
    return frame, torch.stack([left, top, left + height // 2, top + height], 1).float()
