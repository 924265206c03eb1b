"""Region maps: the kernel equals the reference to the bit, and both keep their promises."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mgran_fast import layouts, ops
from mgran_fast.ops import backend
from mgran_fast.reference import regions as reference

LAYOUTS = ("region", "part", "box", "none")
KERNELS = ("region", "part", "box")  # "none" looks at nothing, and has no kernel
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
# Coordinates on a grid of 1/8 pixel: W - x is then exact, as the flip test wants it.
grid = st.integers(-8 * 40, 8 * 60).map(lambda v: v / 8)
wild = st.one_of(grid, st.floats(width=32))


@st.composite
def people(draw: st.DrawFn, coordinates: st.SearchStrategy[float], levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """masks float32 [N, h, w], keypoints float32 [N, 17, 3]."""
    n, (h, w) = draw(st.integers(0, 2)), draw(sizes)
    probability = st.floats(0, 1, width=32) if not levels else st.integers(0, levels).map(lambda v: v / levels)
    mask = draw(hnp.arrays(np.float32, (n, h, w), elements=probability))
    points = draw(hnp.arrays(np.float32, (n, 17, 2), elements=coordinates))
    scores = draw(hnp.arrays(np.float32, (n, 17, 1), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
    return mask, np.concatenate([points, scores], 2)


def person(size: tuple[int, int] = (64, 32)) -> tuple[torch.Tensor, torch.Tensor]:
    """A standing person in a full-height mask."""
    height, width = size
    mask = torch.zeros(1, height, width)
    mask[:, 2:-2, width // 4 : -width // 4] = 1.0
    at = {
        "nose": (0.5, 0.1), "left_eye": (0.53, 0.08), "right_eye": (0.47, 0.08), "left_ear": (0.56, 0.09),
        "right_ear": (0.44, 0.09), "left_shoulder": (0.65, 0.2), "right_shoulder": (0.35, 0.2),
        "left_elbow": (0.7, 0.35), "right_elbow": (0.3, 0.35), "left_wrist": (0.7, 0.48), "right_wrist": (0.3, 0.48),
        "left_hip": (0.6, 0.5), "right_hip": (0.4, 0.5), "left_knee": (0.6, 0.72), "right_knee": (0.4, 0.72),
        "left_ankle": (0.6, 0.92), "right_ankle": (0.4, 0.92),
    }  # fmt: skip
    points = [[at[name][0] * width, at[name][1] * height, 1.0] for name in layouts.KEYPOINTS]
    return mask, torch.tensor([points])


# --- the kernel and the reference ---------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    data=people(wild),
    size=sizes,
    layout=st.sampled_from(KERNELS),
    bytes_=st.booleans(),
    threshold=st.floats(0, 1),
)
def test_kernel_equals_reference(
    native: Callable[..., torch.Tensor],
    isa: str,
    data: tuple[np.ndarray, np.ndarray],
    size: tuple[int, int],
    layout: str,
    bytes_: bool,
    threshold: float,
) -> None:
    mask, keypoints = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    if bytes_:
        mask = (mask * 255).to(torch.uint8)
    got = native(ops.regions, mask, keypoints, size, layout, threshold)
    want = reference.regions(mask, keypoints, size, layout, threshold)
    assert got.dtype == torch.uint8
    assert torch.equal(got, want)


def crowd(n: int, source: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Masks [n, *source] of noise, and keypoints [n, 17, 3] all over a map of this size."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(n, *source, generator=generator)
    keypoints = torch.rand(n, 17, 3, generator=generator) * torch.tensor([float(size[1]), float(size[0]), 1.0])
    return mask if dtype == torch.float32 else (mask * 255).to(dtype), keypoints


@pytest.mark.parametrize("layout", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("source", [(130, 65), (33, 17)], ids=["same size", "resampled"])
def test_kernel_equals_reference_for_many_people(
    native: Callable[..., torch.Tensor],
    device: Callable[[str], str],
    layout: str,
    dtype: torch.dtype,
    source: tuple[int, int],
) -> None:
    where = device("regions")
    mask, keypoints = crowd(9, source, (130, 65), dtype)
    keypoints[0, :, 2] = 0  # one person of bands
    mask[1] = 0  # and one of nothing
    got = native(ops.regions, mask.to(where), keypoints.to(where), (130, 65), layout)
    assert got.device.type == where
    assert torch.equal(got.cpu(), reference.regions(mask, keypoints, (130, 65), layout))
    assert got.unique().tolist() == list(range(layouts.get(layout).regions + 1))


@pytest.mark.parametrize("size", [(256, 128), (64, 32), (17, 40)])
def test_kernel_equals_reference_for_a_standing_person(
    native: Callable[..., torch.Tensor], isa: str, size: tuple[int, int]
) -> None:
    mask, keypoints = person(size)
    for layout in KERNELS:
        for _ in range(3):
            got = native(ops.regions, mask, keypoints, size, layout)
            assert torch.equal(got, reference.regions(mask, keypoints, size, layout))
            # Someone who leans: no edge of the torso is upright, no limb ends on a pixel's centre.
            keypoints[..., 0] += 0.1 * (keypoints[..., 1] - size[0] / 2) + 0.37


def test_threads_share_the_people(native: Callable[..., torch.Tensor], threads: int) -> None:
    mask, keypoints = crowd(9, (33, 17), (130, 65), torch.float32)
    got = native(ops.regions, mask, keypoints, (130, 65), "part")
    assert torch.equal(got, reference.regions(mask, keypoints, (130, 65), "part"))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_more_people_than_a_grid_has_rows(native: Callable[..., torch.Tensor], device: Callable[[str], str]) -> None:
    # Two of the three dimensions of a CUDA grid end at 65,535.
    where = device("regions")
    mask, keypoints = crowd(65_600, (4, 2), (6, 3), torch.uint8)
    got = native(ops.regions, mask.to(where), keypoints.to(where), (6, 3))
    assert torch.equal(got.cpu(), reference.regions(mask, keypoints, (6, 3)))
    assert got[65_536:].any()


def test_non_contiguous_arguments(native: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(16, 4, 20, generator=generator).permute(1, 0, 2)[..., ::2]
    keypoints = (torch.rand(17, 4, 3, generator=generator) * 16).transpose(0, 1)
    assert not mask.is_contiguous()
    assert not keypoints.is_contiguous()
    got = native(ops.regions, mask, keypoints, (16, 10))
    assert torch.equal(got, native(ops.regions, mask.contiguous(), keypoints.contiguous(), (16, 10)))


# --- promises -------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(people(wild), st.sampled_from(("region", "part")))
def test_regions_partition_the_binarized_mask(data: tuple[np.ndarray, np.ndarray], layout: str) -> None:
    mask, keypoints = (torch.from_numpy(array) for array in data)
    map_ = ops.regions(mask, keypoints, mask.shape[1:], layout)
    # Every foreground pixel has exactly one region (a map holds one number a pixel), and no other pixel has one.
    assert torch.equal(map_ > 0, mask >= 0.5)
    assert map_.numel() == 0 or int(map_.max()) <= layouts.get(layout).regions


@settings(max_examples=80)
@given(people(wild, levels=4), sizes)
def test_rectangles_contain_the_regions_that_they_bound(
    data: tuple[np.ndarray, np.ndarray], size: tuple[int, int]
) -> None:
    mask, keypoints = (torch.from_numpy(array) for array in data)
    region = ops.regions(mask, keypoints, size, "region")
    box = ops.regions(mask, keypoints, size, "box")
    assert torch.equal(box[region > 0], region[region > 0])
    for n in range(len(mask)):
        for group in (1, 2, 3):
            rows, columns = torch.where(region[n] == group)
            if len(rows):
                inside = box[n, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                assert bool((inside > 0).all())


@settings(max_examples=80)
@given(people(grid, levels=16), sizes, st.sampled_from(("region", "box")))
def test_flip_equivariance(data: tuple[np.ndarray, np.ndarray], size: tuple[int, int], layout: str) -> None:
    mask, keypoints = (torch.from_numpy(array) for array in data)
    mirrored = keypoints[:, list(layouts.KEYPOINT_FLIP)].clone()
    mirrored[..., 0] = size[1] - mirrored[..., 0]
    got = ops.regions(mask.flip(2), mirrored, size, layout)
    flip = torch.tensor(layouts.get(layout).flip, dtype=torch.uint8)
    assert torch.equal(got, flip[ops.regions(mask, keypoints, size, layout).long()].flip(2))


def test_flip_exchanges_left_and_right_parts() -> None:
    mask, keypoints = person()
    # On a grid of 1/8 pixel the mirror image of a coordinate is exact. No pixel of this person lies on its axis, so
    # no left limb ties with a right one.
    keypoints[..., :2] = (keypoints[..., :2] * 8).round() / 8
    mirrored = keypoints[:, list(layouts.KEYPOINT_FLIP)].clone()
    mirrored[..., 0] = 32 - mirrored[..., 0]
    original, flipped = ops.regions(mask, keypoints, (64, 32), "part"), ops.regions(mask, mirrored, (64, 32), "part")
    flip = torch.tensor(layouts.PART.flip, dtype=torch.uint8)
    assert original.unique().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(flipped, flip[original.long()].flip(2))


def test_a_standing_person() -> None:
    mask, keypoints = person()
    map_ = ops.regions(mask, keypoints, (64, 32))[0]
    column = map_[:, 16].tolist()
    assert column[:2] == [0, 0]
    assert column[4] == 1
    assert column[20] == 2
    assert column[55] == 3
    foreground = [v for v in column if v]
    assert foreground == sorted(foreground), "head, upper body and lower body follow each other downwards"


@pytest.mark.parametrize("layout", ["region", "part", "box"])
def test_empty_mask_gives_an_empty_map(layout: str) -> None:
    _, keypoints = person()
    assert not ops.regions(torch.zeros(1, 16, 8), keypoints, (64, 32), layout).any()
    assert not ops.regions(torch.full((1, 16, 8), torch.nan), keypoints, (64, 32), layout).any()


def test_no_keypoints_fall_back_to_bands_of_the_box() -> None:
    mask = torch.zeros(1, 48, 20)
    mask[0, 12:36, 4:16] = 1.0
    map_ = ops.regions(mask, torch.zeros(1, 17, 3), (48, 20))[0]
    assert map_[:, 10].tolist() == [0] * 12 + [1] * 4 + [2] * 8 + [3] * 12 + [0] * 12
    assert map_[20].tolist() == [0] * 4 + [2] * 12 + [0] * 4


@pytest.mark.parametrize("score", [0.29, float("nan")])
def test_keypoints_under_the_threshold_are_left_out(score: float) -> None:
    mask, keypoints = person()
    weak = keypoints.clone()
    weak[:, 5:, 2] = score
    assert ops.regions(mask, weak, (64, 32)).unique().tolist() == [0, 1], "only the head is left to be near to"
    weak[:, 5:, 2] = 0.3
    assert torch.equal(ops.regions(mask, weak, (64, 32)), ops.regions(mask, keypoints, (64, 32)))


def test_keypoints_far_outside_are_left_out() -> None:
    mask, keypoints = person()
    keypoints[:, :5, 0] = 1e30
    assert ops.regions(mask, keypoints, (64, 32)).unique().tolist() == [0, 2, 3]


def test_threshold_is_inclusive_and_exact() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    mask = torch.tensor([[[0.5, float(below)]]])
    keypoints = torch.zeros(1, 17, 3)
    assert (ops.regions(mask, keypoints, (1, 2)) > 0).tolist() == [[[True, False]]]


@pytest.mark.parametrize("source", [(5, 3), (64, 20), (1, 1), (40, 90)])
def test_resampling_is_bilinear_at_half_pixel_centres(source: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(2, *source, generator=generator)
    smooth = torch.nn.functional.interpolate(mask[:, None], (37, 22), mode="bilinear", align_corners=False)[:, 0]
    got = ops.regions(mask, torch.zeros(2, 17, 3), (37, 22)) > 0
    # Only a value within rounding of the threshold may fall on the other side.
    assert bool(((got == (smooth >= 0.5)) | ((smooth - 0.5).abs() < 1e-5)).all())


def test_no_people() -> None:
    assert ops.regions(torch.zeros(0, 8, 4), torch.zeros(0, 17, 3), (6, 5)).shape == (0, 6, 5)


def test_visibility() -> None:
    map_ = torch.tensor([[[0, 1], [3, 3]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    assert ops.visibility(map_).tolist() == [[True, True, False, True], [True, False, False, False]]
    assert ops.visibility(map_[:0]).shape == (0, 4)


# --- wrong arguments ------------------------------------------------------------------------------------------

MASK, KEYPOINTS = torch.zeros(2, 8, 4), torch.zeros(2, 17, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mask": np.zeros((2, 8, 4))}, TypeError, "mask must be a torch.Tensor"),
        ({"mask": MASK.double()}, TypeError, "mask must be float32 or uint8, not float64"),
        ({"mask": MASK[0]}, ValueError, r"mask must have the shape \[any, any, any\], not \[8, 4\]"),
        ({"mask": MASK[:, :0]}, ValueError, "mask has no pixels"),
        ({"keypoints": KEYPOINTS[:, :16]}, ValueError, r"keypoints must have the shape \[any, 17, 3\]"),
        ({"keypoints": KEYPOINTS[:1]}, ValueError, "different numbers of people: mask has 2, keypoints has 1"),
        ({"keypoints": KEYPOINTS.to("meta")}, ValueError, "on different devices: mask on cpu, keypoints on meta"),
        ({"size": (8,)}, ValueError, "size must be"),
        ({"size": (8, 0)}, ValueError, "size must be"),
        ({"size": (2**14, 2**13)}, ValueError, "size must have at most"),
        ({"layout": "limbs"}, ValueError, "layout must be one of box, none, part, region, not 'limbs'"),
        ({"threshold": 1.5}, ValueError, r"threshold must be in \[0, 1\]"),
        ({"threshold": float("nan")}, ValueError, r"threshold must be in \[0, 1\]"),
    ],
)
def test_wrong_arguments(change: dict[str, object], error: type[Exception], words: str) -> None:
    arguments: dict[str, object] = {"mask": MASK, "keypoints": KEYPOINTS, "size": (8, 4), **change}
    with pytest.raises(error, match=words):
        ops.regions(**arguments)  # type: ignore[arg-type]


# --- layouts -----------------------------------------------------------------------------------------------


def test_layout_of_your_own() -> None:
    limbs = (layouts.Limb(1, "neck", "pelvis", 1.0), layouts.Limb(2, "left_knee", "left_ankle", 1.0))
    mine = layouts.Layout("test-two", ("top", "leg"), (0, 1, 2), limbs, bands=(layouts.Band(1, 0, 24),))
    mask, keypoints = person()
    map_ = ops.regions(mask, keypoints, (64, 32), mine)
    assert map_.unique().tolist() == [0, 1, 2]
    assert torch.equal(map_, reference.regions(mask, keypoints, (64, 32), mine))
    assert torch.equal(map_, ops.regions(mask, keypoints, (64, 32), "test-two"))
    with pytest.raises(ValueError, match="there is a layout 'test-two' already"):
        layouts.register(layouts.Layout("test-two", ("a",), (0, 1), limbs[:1], bands=mine.bands))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flip": (0, 1)}, "flip must be a permutation"),
        ({"limbs": (layouts.Limb(3, "nose", "nose", 1.0),)}, "groups between 1 and 2"),
        ({"limbs": (layouts.Limb(1, "nose", "tail", 1.0),)}, "no joint"),
        ({"limbs": (layouts.Limb(1, "nose", "nose", 0.0),)}, "thickness of nose-nose must be positive"),
        ({"limbs": ()}, "needs limbs"),
        ({"torso": 3}, "torso and the bands' groups must be between 1 and 2"),
        ({"bands": (layouts.Band(3, 0, 24),)}, "torso and the bands' groups must be between 1 and 2"),
        ({"limbs": (layouts.Limb(1, "nose", "nose", 1.0),) * 33}, "at most 15 regions, 32 limbs"),
    ],
)
def test_wrong_layouts(change: dict[str, object], words: str) -> None:
    table: dict[str, object] = {
        "name": "wrong",
        "groups": ("a", "b"),
        "flip": (0, 1, 2),
        "limbs": (layouts.Limb(1, "nose", "nose", 1.0),),
        "bands": (layouts.Band(1, 0, 24),),
    }
    with pytest.raises(ValueError, match=words):
        layouts.Layout(**{**table, **change})  # type: ignore[arg-type]


# --- backends -------------------------------------------------------------------------------------------------


def test_forced_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    assert backend.native("regions", "cpu") is None
    mask, keypoints = person()
    assert ops.regions(mask, keypoints, (64, 32)).unique().tolist() == [0, 1, 2, 3]


def test_forced_native_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "native")
    with pytest.raises(RuntimeError, match="the reference would run unicorns on cpu: "):
        backend.native("unicorns", "cpu")


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "fast")
    with pytest.raises(ValueError, match="MGRAN_BACKEND must be one of auto, native, reference, not 'fast'"):
        backend.requested()


def test_the_extension_refuses_what_it_cannot_hold(extension: ModuleType) -> None:
    good = {"limbs": [(1, 0, 0)], "weights": [1.0], "bands": [], "torso": 0, "rectangles": False, "regions": 1}
    extension.Layout(**good)
    for change in (
        {"limbs": [(2, 0, 0)]},
        {"limbs": [(1, 0, 19)]},
        {"weights": []},
        {"limbs": [(1, 0, 0)] * 33, "weights": [1.0] * 33},
        {"regions": 16},
        {"torso": 2},
        {"bands": [(2, 0, 24, 0, 24)]},
    ):
        with pytest.raises(ValueError, match=r"layout|limb|band|torso"):
            extension.Layout(**{**good, **change})
