"""The whole way, from pictures on disk to embeddings, and each stage of it: ours, and as the published system goes.

That is :class:`mgran_fast.reference.published.PublishedMGRAN`: two stock detectors at their default size, one crop
after another, and four eager float32 passes of one network. Its detectors have random weights and find one person in
each crop (:func:`mgran_fast.bench.peers.detectors`), so what follows is given to both sides alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mgran_fast import ops
from mgran_fast.bench import peers
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, close, no_grad, same_direction
from mgran_fast.data.pictures import read_picture
from mgran_fast.engine.engine import Engine
from mgran_fast.reference.published import PublishedMGRAN

PUBLISHED = "as published"
#: In the order of the way; the last is all of them.
STAGES = ("read JPEG", "masks and keypoints", "regions and inputs", "network and pooling", "pictures to embeddings")


def cases(sizes: Sizes, *, quick: bool, device: str) -> list[Case]:
    """Stage by stage, and the whole."""
    precisions = ("bfloat16",) if quick or device == "cuda" else ("float32", "bfloat16", "int8")
    fast = ("bfloat16", *(one for one in precisions if one != "bfloat16"))
    many = (OURS, *(f"ours, {one}" for one in fast[1:]), PUBLISHED)
    at = {"people": sizes.one_by_one}
    # The detectors take seconds for each person, and what is to be warmed, their making and the stages before have.
    once = (0, 1, 1) if quick else (0, 3, 3)
    made = {
        STAGES[0]: ((OURS, PUBLISHED), _read, None),
        STAGES[1]: ((OURS, PUBLISHED), _estimate, once),
        STAGES[2]: ((OURS, PUBLISHED), _inputs, None),
        STAGES[3]: (many, _network, (1, 2, 3) if quick else (1, 3, 9)),
        STAGES[4]: (many, _whole, once),
    }
    return [Case("pipeline", name, names, make, at, rounds=rounds) for name, (names, make, rounds) in made.items()]


def published(setting: Setting) -> PublishedMGRAN:
    """With the model's own weights for the network, and torchvision's detectors."""

    def made() -> PublishedMGRAN:
        model, (masks, keypoints) = setting.model, peers.detectors(setting.sizes.detector)
        trunk = peers.plain(model, torch.float32, torch.contiguous_format)
        found = PublishedMGRAN(trunk, masks, keypoints, model.layout, model.scale, model.size)
        return found.to(setting.device)

    found: PublishedMGRAN = setting.once("published", made)
    return found


def _files(setting: Setting) -> list[Path]:
    def drawn() -> list[Path]:
        files = [setting.folder / f"{i}.jpg" for i in range(setting.sizes.one_by_one)]
        for file, crop in zip(files, setting.people(len(files))[0].cpu().numpy(), strict=True):
            Image.fromarray(crop).save(file, quality=95)
        return files

    found: list[Path] = setting.once("files", drawn)
    return found


def _ours_read(setting: Setting) -> torch.Tensor:
    crops = [read_picture(file, setting.model.size) for file in _files(setting)]
    return torch.from_numpy(np.stack(crops)).to(setting.device)


def _plainly_read(setting: Setting) -> torch.Tensor:
    size = setting.model.size[::-1]
    crops = [np.asarray(Image.open(file).convert("RGB").resize(size, Image.Resampling.BILINEAR))
             for file in _files(setting)]  # fmt: skip
    return torch.from_numpy(np.stack(crops)).to(setting.device)


def _read(setting: Setting, names: Sequence[str]) -> Prepared:
    ways = {OURS: lambda: _ours_read(setting), PUBLISHED: lambda: _plainly_read(setting)}
    # Two decoders of JPEG differ by a few grey levels.
    return Prepared(ways, close(32), len(_files(setting)))


def _estimate(setting: Setting, names: Sequence[str]) -> Prepared:
    crops = setting.people(setting.sizes.one_by_one)[0]
    plain = published(setting)
    ways = {OURS: lambda: setting.model.estimate(crops), PUBLISHED: lambda: plain.estimate(crops)}
    # Weights that were drawn find nobody in particular: there is nothing to compare.
    return Prepared({name: no_grad(run) for name, run in ways.items()}, None, len(crops))


def _inputs(setting: Setting, names: Sequence[str]) -> Prepared:
    crops, masks, keypoints = setting.people(setting.sizes.one_by_one)
    model, plain = setting.model, published(setting)
    found = type(model.estimate(crops[:1]))(masks, keypoints, masks.flatten(1).amax(1), None)

    def ours() -> torch.Tensor:
        return ops.align(
            crops, masks, keypoints, model.layout, scale=model.scale, mean=model.mean, std=model.std
        ).inputs  # fmt: skip

    def as_published() -> torch.Tensor:
        region_map = plain.region_map(found)
        return torch.stack(plain.inputs(crops, region_map), 1)

    return Prepared({OURS: ours, PUBLISHED: as_published}, close(1e-5) if _plain_pixels(setting) else None, len(crops))


def _network(setting: Setting, names: Sequence[str]) -> Prepared:
    crops, region_map = setting.aligned(setting.sizes.one_by_one)
    plain = published(setting)
    images = plain.inputs(crops, region_map)
    ways: dict[str, Callable[[], object]] = {PUBLISHED: no_grad(lambda: plain.embed(images, region_map))}
    for name in names:
        if name != PUBLISHED:
            engine = setting.engine(_precision(name))
            ways[name] = functools.partial(engine, crops, region_map=region_map)
    same = _plain_pixels(setting) and setting.model.ma.pooling == "mean"
    ordered = {name: ways[name] for name in names}
    return Prepared(ordered, same_direction(0.9) if same else None, len(crops))


def _whole(setting: Setting, names: Sequence[str]) -> Prepared:
    plain = published(setting)
    ways: dict[str, Callable[[], object]] = {}
    for name in names:
        if name == PUBLISHED:
            ways[name] = no_grad(lambda: plain(_plainly_read(setting)))
        else:
            engine = setting.engine(_precision(name))
            ways[name] = functools.partial(_read_and_embedded, setting, engine)
    # Other masks, of weights that were drawn: what can be compared was, stage by stage.
    return Prepared(ways, None, len(_files(setting)))


def _read_and_embedded(setting: Setting, engine: Engine) -> torch.Tensor:
    return engine(_ours_read(setting))


def _precision(name: str) -> str:
    return "bfloat16" if name == OURS else name.removeprefix("ours, ")


def _plain_pixels(setting: Setting) -> bool:
    """Whether the model's normalisation is the published one."""
    model = setting.model
    return set(model.mean) <= {0.0} and set(model.std) <= {1.0}
