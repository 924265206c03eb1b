"""MGRAN from pictures to embeddings: against the published system, and every way to call it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import mgran_fast
from mgran_fast import MGRAN, layouts, ops
from mgran_fast.ma import MAOutput
from mgran_fast.mra.estimate import Estimate
from mgran_fast.reference.published import PublishedMGRAN

SIZE = (64, 32)
# Where a standing person's joints are, as shares of the width and height, in COCO order.
JOINTS = (
    (0.50, 0.10), (0.53, 0.08), (0.47, 0.08), (0.56, 0.09), (0.44, 0.09), (0.65, 0.20), (0.35, 0.20), (0.70, 0.35),
    (0.30, 0.35), (0.70, 0.48), (0.30, 0.48), (0.60, 0.50), (0.40, 0.50), (0.60, 0.72), (0.40, 0.72), (0.60, 0.92),
    (0.40, 0.92),
)  # fmt: skip


def pictures(n: int = 3, size: tuple[int, int] = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *size, 3), dtype=torch.uint8, generator=generator)


def bodies(n: int = 3, size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks float32 [N, H, W] and keypoints float32 [N, 17, 3] of people who stand in the middle."""
    height, width = size
    masks = torch.zeros(n, height, width)
    masks[:, height // 16 : -height // 16, width // 4 : -width // 4] = 1.0
    points = [[x * width, y * height, 1.0] for x, y in JOINTS]
    return masks, torch.tensor([points]).repeat(n, 1, 1)


def build(layout: str = "region", num_classes: int = 0, **options: Any) -> MGRAN:
    torch.manual_seed(0)
    model = MGRAN(num_classes, layout, **{"size": SIZE, "trunk": "resnet18", **options}).eval()
    # Batch norm as after training: the fresh one has residual branches of 0.
    for layer in model.ma.trunk.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return model


@pytest.fixture(scope="module")
def model() -> MGRAN:
    """Shared by the tests that only read it."""
    return build().requires_grad_(False)


class Estimator(nn.Module):
    """An estimator that knows where the people stand, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm1d(1)
        self.calls: list[tuple[tuple[int, ...], torch.dtype, bool, bool]] = []

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        self.calls.append((tuple(crops.shape), crops.dtype, self.training, torch.is_grad_enabled()))
        masks, keypoints = bodies(len(crops), (crops.shape[1], crops.shape[2]))
        return Estimate(masks * self.brightness, keypoints * self.brightness, torch.ones(len(crops)))


# --- the published system -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["region", "part", "box", "none"])
def test_equals_the_published_system(layout: str) -> None:
    ours = build(layout)
    trunk = nn.Sequential(*ours.ma.trunk.children())
    published = PublishedMGRAN(trunk, nn.Identity(), nn.Identity(), layout, size=SIZE).eval()
    crops, (masks, keypoints) = pictures(4), bodies(4)
    masks[2] = 0.0  # nobody found
    masks[3, :20] = 0.0  # no head
    keypoints[3, :5] = 0.0
    with torch.no_grad():
        region_map = ours.regions(crops, masks, keypoints)
        images = published.inputs(crops, region_map)
        assert torch.equal(ours.inputs(crops, region_map), torch.stack(images, 1))
        want = published.embed(images, region_map)
        # Four calls and one batched pass differ by float32's rounding; embeddings have length 1.
        torch.testing.assert_close(ours(crops, masks, keypoints), want, rtol=0, atol=2e-6)
        torch.testing.assert_close(ours(crops, region_map=region_map), want, rtol=0, atol=2e-6)
    assert float(want.norm(dim=1).min()) > 0.99


# --- what comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "inputs"), [("region", 4), ("part", 7), ("box", 4), ("none", 1)])
def test_eval_output(layout: str, inputs: int) -> None:
    model = build(layout)
    with torch.no_grad():
        got = model(pictures(), *bodies())
        encoding = model.encode(pictures(), *bodies())
    assert got.shape == (3, inputs * 512) == (3, model.dim)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.norm(dim=1), torch.ones(3))
    assert torch.equal(encoding.vector, got)
    assert encoding.embeddings.shape == (3, inputs, 512)
    assert encoding.visible.shape == (3, inputs)
    assert bool(encoding.visible.all())


def test_train_output() -> None:
    model = build(num_classes=5).train()
    output = model(pictures(), *bodies())
    assert isinstance(output, MAOutput)
    assert output.features.shape == output.embeddings.shape == (3, 4, 512)
    assert output.logits is not None
    assert output.logits.shape == (3, 4, 5)
    assert output.visible.dtype == torch.bool


@pytest.mark.parametrize("training", [False, True])
def test_no_people(training: bool) -> None:
    model = build(num_classes=5).train(training)
    counter = model.ma.trunk.bn1.num_batches_tracked.clone()
    for arguments in (bodies(0), (torch.zeros(0, 64, 32), None), (None, None, torch.zeros(0, 9, 9, dtype=torch.uint8))):
        output = model(pictures(0), *arguments)
        if training:
            assert output.logits.shape == (0, 4, 5)
            assert output.visible.shape == (0, 4)
        else:
            assert output.shape == (0, 2048)
    assert torch.equal(model.ma.trunk.bn1.num_batches_tracked, counter)
    assert not model.ma.neck.running_mean.any()


def test_invisible_regions_are_blocks_of_zeros(model: MGRAN) -> None:
    region_map = torch.full((3, *SIZE), 2, dtype=torch.uint8)
    region_map[1, 40:] = 3
    region_map[2] = 0
    encoding = model.encode(pictures(), region_map=region_map)
    visible = [[True, False, True, False], [True, False, True, True], [True, False, False, False]]
    assert encoding.visible.tolist() == visible
    blocks = encoding.vector.unflatten(1, (4, 512))
    assert (blocks != 0).any(2).tolist() == visible
    # Every visible block has the same share of the unit length.
    torch.testing.assert_close(blocks[1, [0, 2, 3]].norm(dim=1), torch.full((3,), 3**-0.5))
    torch.testing.assert_close(blocks[2, 0].norm(), torch.ones(()))


def test_a_person_does_not_depend_on_the_others(model: MGRAN) -> None:
    together = model(pictures(), *bodies())
    masks, keypoints = bodies()
    for i in range(3):
        rows = slice(i, i + 1)
        alone = model(pictures()[rows], masks[rows], keypoints[rows])
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-6)


def test_a_black_picture_is_no_nan() -> None:
    fresh = MGRAN(size=SIZE, trunk="resnet18").eval()
    with torch.no_grad():
        got = fresh(torch.zeros_like(pictures()), *bodies())
    assert bool(got.isfinite().all())


# --- what goes in -------------------------------------------------------------------------------------------------


def test_masks_and_keypoints_or_their_region_map(model: MGRAN) -> None:
    masks, keypoints = bodies()
    want = model(pictures(), masks, keypoints)
    region_map = ops.regions(masks, keypoints, SIZE)
    assert region_map.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(model.regions(pictures(), masks, keypoints), region_map)
    assert torch.equal(model(pictures(), region_map=region_map), want)
    assert torch.equal(model(pictures(), (masks * 255).to(torch.uint8), keypoints), want)
    # Another map is another embedding: the map is really looked at.
    assert float((model(pictures(), region_map=region_map.flip(1)) - want).abs().max()) > 1e-3


def test_masks_alone_are_cut_into_bands(model: MGRAN) -> None:
    masks, _ = bodies()
    got = model.regions(pictures(), masks)
    assert torch.equal(got, ops.regions(masks, torch.zeros(3, 17, 3), SIZE))
    assert got.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(model(pictures(), masks), model(pictures(), region_map=got))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_crops_are_bytes_over_255(model: MGRAN, dtype: torch.dtype) -> None:
    crops = pictures()
    floats = crops.permute(0, 3, 1, 2).to(dtype) / 255
    assert torch.equal(model(floats, *bodies()), model(crops, *bodies()))
    # The nearest step, not the next lower one.
    assert torch.equal(model((floats + 0.4 / 255).clamp(max=1), *bodies()), model(crops, *bodies()))


@pytest.mark.parametrize("size", [(128, 64), (63, 31), (32, 16), (200, 100)])
def test_crops_of_another_size_are_resized(model: MGRAN, size: tuple[int, int]) -> None:
    crops, (masks, keypoints) = pictures(2, size), bodies(2, size)
    planes = crops.permute(0, 3, 1, 2).float()
    small = nn.functional.interpolate(planes, SIZE, mode="bilinear", align_corners=False, antialias=True)
    small = small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    # Keypoints are in pixels of the crop as given, and go with it.
    scaled = keypoints * torch.tensor([SIZE[1] / size[1], SIZE[0] / size[0], 1.0])
    region_map = ops.regions(masks, scaled, SIZE)
    assert torch.equal(model.regions(crops, masks, keypoints), region_map)
    assert torch.equal(model(crops, masks, keypoints), model(small, region_map=region_map))
    assert torch.equal(model(crops.permute(0, 3, 1, 2) / 255, masks, keypoints), model(crops, masks, keypoints))


def test_keypoints_are_in_pixels_of_the_crops_and_masks_of_any_resolution(model: MGRAN) -> None:
    masks, keypoints = bodies(2, (128, 64))
    want = model.regions(pictures(2, (128, 64)), masks, keypoints)
    assert torch.equal(model.regions(pictures(2, (128, 64)), masks[:, ::2, ::2], keypoints), want)
    # The same numbers on a crop of half the size are other places: no head is left there.
    assert not torch.equal(model.regions(pictures(2), masks, keypoints), want)


def test_a_region_map_of_another_size_is_resized_to_the_nearest(model: MGRAN) -> None:
    region_map = ops.regions(*bodies(), SIZE)
    twice = region_map.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(model(pictures(), region_map=twice), model(pictures(), region_map=region_map))


def test_none_looks_at_the_whole_crop_alone() -> None:
    model = build("none")
    with torch.no_grad():
        want = model(pictures())
        assert torch.equal(model(pictures(), *bodies()), want)
    assert torch.equal(model.regions(pictures()), torch.ones(3, *SIZE, dtype=torch.uint8))


def test_normalisation_of_the_pixels() -> None:
    region_map = torch.randint(0, 4, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = build(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    want = ops.inputs(pictures(), region_map, 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert torch.equal(model.inputs(pictures(), region_map), want)
    assert torch.equal(build().inputs(pictures(), region_map), ops.inputs(pictures(), region_map, 1 / 256))


# --- the estimator --------------------------------------------------------------------------------------------------


def test_the_estimator_runs_only_when_there_are_no_masks() -> None:
    estimator = Estimator()
    model = build(mra=estimator)
    masks, keypoints = bodies(3, (128, 64))
    crops = pictures(3, (128, 64))
    with torch.no_grad():
        want = model(crops, masks, keypoints)
        model(crops, masks)
        model(crops, region_map=model.regions(crops, masks, keypoints))
        assert estimator.calls == []
        got = model(crops)
        # It sees the crops as given, not the resized ones, and its keypoints are in their pixels.
        assert estimator.calls == [((3, 128, 64, 3), torch.uint8, False, False)]
        assert torch.equal(got, want)
        assert torch.equal(model(crops.permute(0, 3, 1, 2) / 255), want)
        assert len(estimator.calls) == 2
        build("none", mra=estimator)(crops)
    assert len(estimator.calls) == 2


def test_the_estimator_stays_in_eval_mode_and_gets_no_gradient() -> None:
    estimator = Estimator()
    assert estimator.training
    model = build(num_classes=5, mra=estimator)
    assert model.train() is model
    assert model.training
    assert model.ma.trunk.bn1.training
    assert not estimator.training
    assert not estimator.norm.training
    output = model(pictures())
    assert estimator.calls[-1][2:] == (False, False)
    (output.features.square().sum() + output.logits.square().sum()).backward()
    assert all(parameter.grad is None for parameter in estimator.parameters())


def test_an_estimator_in_training_mode_is_put_in_eval_mode_from_the_start() -> None:
    estimator = Estimator().train()
    model = MGRAN(size=SIZE, trunk="resnet18", mra=estimator)
    assert model.training
    assert not estimator.training


def test_a_plain_function_is_an_estimator() -> None:
    def estimate(crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        return Estimate(*bodies(len(crops)), torch.ones(len(crops)))

    model = build(mra=estimate)
    model.train().eval()
    with torch.no_grad():
        assert torch.equal(model(pictures()), model(pictures(), *bodies()))


def test_without_an_estimator_the_region_net_of_the_package_runs() -> None:
    model = build()
    crops = pictures()
    before = set(model.state_dict())
    with torch.no_grad():
        found = mgran_fast.RegionNet.from_pretrained()(crops)
        want = model(crops, found.mask, found.keypoints)
        assert torch.equal(model(crops), want)
        again = copy.deepcopy(model)
        assert torch.equal(again(crops), want)
    # It is no part of the model: nothing to train, to save or to load.
    assert model.mra is None
    assert set(model.state_dict()) == before
    assert not any("RegionNet" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize("layout", ["region", "part"])
def test_mask_rcnn_goes_with_every_layout(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgran_fast.mra.maskrcnn.MaskRCNN", Estimator)
    monkeypatch.delitem(vars(mgran_fast), "MaskRCNN", raising=False)
    try:
        model = build(layout, mra=mgran_fast.MaskRCNN())
        with torch.no_grad():
            got = model(pictures())
    finally:
        # The package keeps a name once it was looked up.
        vars(mgran_fast).pop("MaskRCNN", None)
    assert got.shape == (3, 512 * len(layouts.get(layout).inputs))


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistics", "pooling"), [("joint", "mean"), ("joint", "max"), ("per_input", "mean"), ("per_input", "gem")]
)
def test_gradient_reaches_every_parameter(statistics: str, pooling: str) -> None:
    model = build(num_classes=5, statistics=statistics, pooling=pooling).train()
    output = model(pictures(), *bodies())
    labels = torch.tensor([0, 1, 4])
    loss = sum(nn.functional.cross_entropy(output.logits[:, i], labels) for i in range(4))
    (loss + output.features.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
    # Each input has a classifier of its own, and all of them learn.
    assert bool(model.ma.classifiers.weight.grad.flatten(1).any(1).all())


# --- wrong arguments --------------------------------------------------------------------------------------------------

MASKS, KEYPOINTS = bodies()
MAP = torch.ones(3, *SIZE, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"keypoints": KEYPOINTS}, ValueError, "keypoints without masks: pass masks as well, or neither"),
        ({"region_map": MAP, "masks": MASKS}, ValueError, "region_map together with masks or keypoints"),
        ({"region_map": MAP, "keypoints": KEYPOINTS}, ValueError, "region_map together with masks or keypoints"),
        ({"region_map": MAP[:2]}, ValueError, r"region_map must have the shape \[3, any, any\], not \[2, 64, 32\]"),
        ({"region_map": MAP[0]}, ValueError, "region_map must have the shape"),
        ({"region_map": MAP[:, ::2].long()}, TypeError, "region_map must be uint8, not int64"),
        ({"region_map": MAP.tolist()}, TypeError, "region_map must be a torch.Tensor, not list"),
        ({"masks": MASKS[:2]}, ValueError, r"masks must have the shape \[3, any, any\], not \[2, 64, 32\]"),
        ({"masks": MASKS[:, None]}, ValueError, "masks must have the shape"),
        ({"masks": MASKS.numpy()}, TypeError, "masks must be a torch.Tensor, not ndarray"),
        ({"masks": MASKS > 0.5}, TypeError, "masks must be float32 or uint8, not bool"),
        ({"masks": MASKS[:, :, :0]}, ValueError, "has no pixels"),
        ({"masks": MASKS[:, :32]}, ValueError, "masks are 32 x 32 and crops 64 x 32: another aspect ratio"),
        ({"masks": MASKS, "keypoints": KEYPOINTS[:2]}, ValueError, r"keypoints must have the shape \[3, 17, 3\]"),
        ({"masks": MASKS, "keypoints": KEYPOINTS[:, :, :2]}, ValueError, "keypoints must have the shape"),
        ({"masks": MASKS, "keypoints": KEYPOINTS.numpy()}, TypeError, "keypoints must be a torch.Tensor"),
        ({"crops": pictures().numpy()}, TypeError, "crops must be a torch.Tensor, not ndarray"),
        ({"crops": pictures()[0]}, ValueError, r"uint8 crops must have the shape \[N, H, W, 3\], not \[64, 32, 3\]"),
        ({"crops": pictures().permute(0, 3, 1, 2)}, ValueError, "uint8 crops must have the shape"),
        ({"crops": pictures().float()}, ValueError, r"float crops must have the shape \[N, 3, H, W\]"),
        ({"crops": pictures().int()}, TypeError, r"crops must be uint8 \[N, H, W, 3\] or float \[N, 3, H, W\]"),
        ({"crops": pictures(3, (0, 32)), "region_map": MAP}, ValueError, "crops have no pixels: they are 0 x 32"),
        ({"crops": pictures(3, (64, 0)), "masks": MASKS}, ValueError, "crops have no pixels: they are 64 x 0"),
    ],
)
def test_wrong_arguments(model: MGRAN, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model(**{"crops": pictures(), **arguments})


@pytest.mark.parametrize("factor", [255.0, -0.001, 1.001, float("nan")])
def test_float_crops_out_of_range(model: MGRAN, factor: float) -> None:
    crops = pictures().permute(0, 3, 1, 2) / 255
    crops[0, 0, 0, 0] = 1.0
    with pytest.raises(ValueError, match=r"float crops must be in \[0, 1\], these are in .*undo the normalisation"):
        model(crops * factor, *bodies())


def test_a_mask_of_nearly_the_same_aspect_is_taken(model: MGRAN) -> None:
    # Two crops of one picture that were resized apart: 21 / 10 against 2.
    with pytest.raises(ValueError, match="another aspect ratio"):
        model(pictures(), torch.ones(3, 22, 10))
    assert model(pictures(), torch.ones(3, 41, 20)).shape == (3, 2048)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": "half"}, "shape must be one of full, crop, single, not 'half'"),
        ({"num_classes": -1}, "num_classes must not be negative, not -1"),
        ({"layout": "limbs"}, "layout must be one of .*box.* not 'limbs'"),
        ({"trunk": "vgg16"}, "trunk must be one of"),
        ({"last_stride": 3}, "last_stride must be 1 or 2"),
        ({"statistics": "none"}, "statistics must be one of"),
        ({"pooling": "sum"}, "pooling must be one of"),
        ({"mean": (0.5,)}, "mean must have one number for each of the 3 channels"),
        ({"std": 4 * (0.5,)}, "std must have one number for each of the 3 channels"),
    ],
)
def test_wrong_options(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MGRAN(**{"trunk": "resnet18", **arguments})


def test_encoding_is_for_eval_mode() -> None:
    model = MGRAN(size=(32, 16), trunk="resnet18")
    before = model.ma.trunk.bn1.running_mean.clone()
    with pytest.raises(RuntimeError, match=r"encode\(\) is for eval mode"):
        model.encode(torch.zeros(2, 32, 16, 3, dtype=torch.uint8), region_map=torch.ones(2, 32, 16, dtype=torch.uint8))
    assert torch.equal(model.ma.trunk.bn1.running_mean, before)
