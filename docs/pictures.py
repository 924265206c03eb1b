"""Draw the README's pictures: what the method does to a crop, and what a search finds; synthetic people throughout.

make demo && .venv/bin/python docs/pictures.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mgran_fast import FeatureExtractor, Gallery, RegionNet, ops
from mgran_fast.data.pictures import read_picture
from mgran_fast.data.synthetic import render
from mgran_fast.report.pictures import found_overlay, network_inputs, region_overlay
from mgran_fast.search.pictures import find_pictures

HERE = Path(__file__).parent / "pictures"
HEIGHT, GAP, TEXT = 240, 12, 20
RIGHT, WRONG, PLAIN = (0, 158, 115), (213, 94, 0), (110, 110, 110)

Picture = NDArray[np.uint8]


def strip(columns: Sequence[tuple[str, Picture, tuple[int, int, int]]], breaks: Sequence[int], file: Path) -> None:
    """A row of pictures of one height, each in a frame, with a line below; wider gaps before ``breaks``."""
    scaled = [
        Image.fromarray(shown).resize((shown.shape[1] * HEIGHT // shown.shape[0], HEIGHT)) for _, shown, _ in columns
    ]
    width = GAP + sum(one.width + GAP for one in scaled) + 2 * GAP * len(breaks)
    page = Image.new("RGB", (width, HEIGHT + TEXT + 2 * GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    left = GAP
    for i, ((line, _, colour), picture) in enumerate(zip(columns, scaled, strict=True)):
        left += 2 * GAP * (i in breaks)
        page.paste(picture, (left, GAP))
        draw.rectangle((left - 2, GAP - 2, left + picture.width + 1, GAP + HEIGHT + 1), outline=colour, width=2)
        draw.text(
            (left + picture.width // 2, GAP + HEIGHT + TEXT // 2 + 4), line, fill=(40, 40, 40), font=font, anchor="mm"
        )
        left += picture.width + GAP
    file.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(192).save(file, optimize=True)


def method() -> None:
    """A crop, what RegionNet finds in it, the regions, and the four inputs of the network."""
    crop = render(7, 1, 2).crop
    estimate = RegionNet.from_pretrained()(torch.from_numpy(crop)[None])
    region_map = ops.regions(estimate.mask, estimate.keypoints, crop.shape[:2])[0].numpy()
    inputs = network_inputs(crop, region_map)
    names = ("whole person", "head", "upper body", "lower body")
    columns = [
        ("crop", crop, PLAIN),
        ("mask, keypoints", found_overlay(crop, estimate.mask[0].numpy(), estimate.keypoints[0].numpy()), PLAIN),
        ("regions", region_overlay(crop, region_map), PLAIN),
        *((name, shown, PLAIN) for name, shown in zip(names, inputs, strict=True)),
    ]
    strip(columns, (1, 3), HERE / "method.png")


def found(demo: Path, query: int, k: int = 6) -> None:
    """The nearest pictures of other cameras to a query, by the demo's model."""
    extractor = FeatureExtractor(demo / "model.safetensors")
    asked = find_pictures(demo / "data" / "query")[1][query]
    root, pictures = find_pictures(demo / "data" / "bounding_box_test")
    gallery = Gallery()
    gallery.add(extractor(root), [one.name for one in pictures], cameras=[one.camera for one in pictures])
    entries = gallery.search(extractor(asked.path), k, not_cameras=[asked.camera]).entries[0]
    persons = {one.name: one.person for one in pictures}
    columns = [("asked for", read_picture(asked.path), PLAIN)]
    columns += [
        (
            f"{entry.distance:.2f}",
            read_picture(root / entry.name),
            RIGHT if persons[entry.name] == asked.person else WRONG,
        )
        for entry in entries
    ]
    strip(columns, (1,), HERE / "found.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the folder of a finished demo")
    parser.add_argument("--query", type=int, default=5, help="which of its queries")
    options = parser.parse_args()
    with torch.inference_mode():
        method()
        found(options.demo, options.query)


if __name__ == "__main__":
    main()
