"""Crops: the same as cv2's bilinear resize, black outside of the frame, and kernels equal to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgran_fast import ops
from mgran_fast.reference import crops as reference

INF, NAN = float("inf"), float("nan")


def frame(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)


def boxes(*values: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 4)


# --- the definition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 128), (64, 32), (7, 5), (1, 1)])
@pytest.mark.parametrize(
    "box", [(0, 0, 90, 120), (10, 20, 50, 110), (3, 4, 4, 5), (-20, -30, 40, 60), (70, 100, 130, 170), (5, 6, 75, 9)]
)
def test_the_same_as_cv2_within_one_grey_level(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = frame(120, 90)
    x1, y1, x2, y2 = box
    around = 100
    padded = cv2.copyMakeBorder(picture.numpy(), *[around] * 4, cv2.BORDER_CONSTANT)
    cut = padded[y1 + around : y2 + around, x1 + around : x2 + around]
    want = cv2.resize(cut, (size[1], size[0]), interpolation=cv2.INTER_LINEAR).reshape(*size, 3)
    got = ops.crops(picture, boxes(box), size)[0].numpy()
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


def by_hand(picture: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """float64 [h, w, 3], one pixel after another."""
    x1, y1, x2, y2 = box

    def taps(low: float, high: float, i: int, target: int) -> list[tuple[int, float]]:
        position = low + (i + 0.5) * (high - low) / target - 0.5
        first, last = (low, high - 1) if high - low >= 1 else ((low + high) / 2 - 0.5,) * 2
        position = min(max(position, first), last)
        floor = int(np.floor(position))
        return [(floor, 1 - (position - floor)), (floor + 1, position - floor)]

    answer = np.zeros((*size, 3))
    for y, x in np.ndindex(*size):
        for row, down in taps(y1, y2, y, size[0]):
            for column, across in taps(x1, x2, x, size[1]):
                if 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]:
                    answer[y, x] += down * across * picture[row, column]
    return answer


@pytest.mark.parametrize(
    "box",
    [(0.25, 0.75, 8.5, 10.125), (2.1, 3.3, 2.4, 3.5), (-3.5, -2.25, 4.2, 5.1), (6.6, 9.9, 30.3, 40.4), (-9, 2, 20, 3)],
)
def test_boxes_with_fractions(box: tuple[float, ...]) -> None:
    picture = frame(12, 9)
    got = ops.crops(picture, boxes(box), (10, 6))[0].double().numpy()  # type: ignore[arg-type]
    # Two roundings to 1/128 of a grey level, then one to a whole level.
    exact = by_hand(picture.numpy(), tuple(float(np.float32(v)) for v in box), (10, 6))
    assert np.abs(got - exact).max() <= 0.53


def test_a_box_of_the_crops_size_is_copied() -> None:
    picture = frame(40, 30)
    assert torch.equal(ops.crops(picture, boxes((3, 5, 11, 21)), (16, 8))[0], picture[5:21, 3:11])


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 10), (5, 5, 10, 5), (10, 10, 5, 5), (NAN, 0, 5, 5), (0, 0, 5, NAN), (-INF, 0, 5, 5), (0, 0, INF, 5),
        (100, 0, 120, 5), (0, -30, 5, -10), (3e38, 3e38, 3.3e38, 3.3e38), (-3.3e38, 0, -3e38, 9),
    ],
)  # fmt: skip
def test_a_box_of_nothing_is_black(box: tuple[float, float, float, float]) -> None:
    got = ops.crops(frame(30, 20), boxes(box, (0, 0, 20, 30)), (8, 4))
    assert not got[0].any()
    assert bool(got[1].any())


def test_a_huge_box_shows_the_frame_as_a_dot() -> None:
    white = torch.full((30, 20, 3), 255, dtype=torch.uint8)
    got = ops.crops(white, boxes((-1000, -1000, 1000, 1000), (-3e38, -3e38, 3e38, 3e38)), (100, 100))
    assert bool(got[0, 50, 50].any())
    assert not got[0, :49].any()
    # Steps of 6e36 pixels: no sample meets the frame.
    assert not got[1].any()


# --- the kernels and the reference ----------------------------------------------------------------------------

coordinate = st.one_of(st.floats(-40, 80, width=32), st.floats(width=32), st.integers(-4, 40).map(float))


@settings(max_examples=80)
@given(
    picture=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    corners=st.lists(st.tuples(*[coordinate] * 4), max_size=4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_kernel_equals_reference(
    native: Callable[..., torch.Tensor],
    isa: str,
    picture: tuple[int, int],
    corners: list[tuple[float, float, float, float]],
    size: tuple[int, int],
) -> None:
    got = native(ops.crops, frame(*picture), boxes(*corners), size)
    assert torch.equal(got, reference.crops(frame(*picture), boxes(*corners), size))


def crowd(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([330.0, 250.0]) - 20
    extent = torch.rand(n, 2, generator=generator) * torch.tensor([80.0, 240.0]) + 1
    return torch.cat([corner, corner + extent], 1)


@pytest.mark.parametrize("size", [(256, 128), (128, 64), (63, 33)])
def test_kernel_equals_reference_for_many_people(
    native: Callable[..., torch.Tensor], device: Callable[[str], str], threads: int, size: tuple[int, int]
) -> None:
    where = device("crops")
    picture, people = frame(240, 320), crowd(24)
    got = native(ops.crops, picture.to(where), people.to(where), size)
    assert got.device.type == where
    assert torch.equal(got.cpu(), reference.crops(picture, people, size))


@pytest.mark.parametrize("size", [(256, 128), (40, 20)])
def test_every_instruction_set(native: Callable[..., torch.Tensor], isa: str, size: tuple[int, int]) -> None:
    picture, people = frame(240, 320), crowd(9)
    assert torch.equal(native(ops.crops, picture, people, size), reference.crops(picture, people, size))


def test_a_frame_that_is_part_of_a_larger_picture(native: Callable[..., torch.Tensor], isa: str) -> None:
    larger = frame(60, 50)
    people = boxes((1, 2, 30, 40), (-5, 20, 60, 70))
    for view in (larger[7:50, 5:38], larger.transpose(0, 1), larger.flip(2), larger[::2, ::2]):
        want = reference.crops(view.contiguous(), people, (16, 8))
        assert torch.equal(native(ops.crops, view, people, (16, 8)), want)


def test_nothing_beyond_the_last_row_is_read(native: Callable[..., torch.Tensor], isa: str) -> None:
    # The frame ends with the memory of its tensor: the sanitizers see a read beyond it, here its value would show.
    memory = torch.full((20 * 30 * 3 + 64,), 255, dtype=torch.uint8)
    view = memory[: 20 * 30 * 3].view(20, 30, 3)
    view.zero_()
    assert not native(ops.crops, view, boxes((0, 0, 30, 20), (25, 15, 40, 30)), (40, 60)).any()


# --- shapes and mistakes --------------------------------------------------------------------------------------


def test_no_people_and_no_frame() -> None:
    assert ops.crops(frame(4, 4), boxes()).shape == (0, 256, 128, 3)
    assert not ops.crops(torch.zeros(0, 4, 3, dtype=torch.uint8), boxes((0, 0, 2, 2)), (8, 4)).any()


def test_a_list_of_frames() -> None:
    frames = [frame(40, 30), frame(20, 50, seed=1), frame(8, 8, seed=2)]
    people = [boxes((1, 2, 9, 20), (0, 0, 30, 40)), boxes(), boxes((2, 2, 6, 6))]
    got = ops.crops(frames, people, (16, 8))
    want = torch.cat([ops.crops(f, b, (16, 8)) for f, b in zip(frames, people, strict=True)])
    assert torch.equal(got, want)
    assert ops.crops([], []).shape == (0, 256, 128, 3)


FRAME, BOXES = torch.zeros(8, 6, 3, dtype=torch.uint8), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"frame": FRAME.numpy()}, ValueError, "boxes must be a list"),
        ({"frame": FRAME.float()}, TypeError, "frame must be uint8, not float32"),
        ({"frame": FRAME.permute(2, 0, 1)}, ValueError, r"frame must have the shape \[any, any, 3\], not \[3, 8, 6\]"),
        ({"frame": [FRAME.numpy()], "boxes": [BOXES]}, TypeError, "frame must be a torch.Tensor, not ndarray"),
        ({"frame": [FRAME]}, ValueError, "boxes must be a list with one tensor for each of the 1 frames"),
        ({"frame": [FRAME], "boxes": []}, ValueError, "each of the 1 frames, not 0 tensors"),
        ({"boxes": None}, TypeError, "boxes must be a torch.Tensor, not NoneType"),
        ({"boxes": BOXES.double()}, TypeError, "boxes must be float32, not float64"),
        ({"boxes": BOXES[0]}, ValueError, r"boxes must have the shape \[any, 4\], not \[4\]"),
        ({"boxes": BOXES.to("meta")}, ValueError, "on different devices: frame on cpu, boxes on meta"),
        ({"size": (8, 0)}, ValueError, "size must be"),
        ({"size": (8, 4, 2)}, ValueError, "size must be"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ops.crops(**{"frame": FRAME, "boxes": BOXES, "size": (8, 4), **change})
