"""Augmentation of labelled crops, a whole batch at a time, on whatever device the batch is.

What a small estimator must not be surprised by, and how often it sees it in training: other framings (a body cut off
at any side, a loose or a tilted box, another aspect ratio), other places (the person cut out and put before another
background), a second person beside or before the first, things in front, blur, low resolution, low light, noise,
colours of another camera, and no person at all. The labels follow: a pixel that something covers is no longer the
person, a keypoint outside of the crop or covered is no longer visible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from mgran_fast.data.labels import LabelledBatch
from mgran_fast.layouts import KEYPOINT_FLIP

#: How much of its visibility a keypoint keeps under an occluder: its place is still a good guess.
COVERED = 0.1
_PLAIN_REACH = 0.35


@dataclass(frozen=True)
class AugmentSettings:
    """Probabilities and ranges.

    Attributes:
        plain: share of the crops that stay what a detector gives: mirrored or not, framed a little otherwise, in a
            slightly other light; nothing else happens to them.
        flip: probability to mirror left and right.
        zoom: range of the scale of the crop; under 1 is a looser box. Log-uniform.
        aspect: largest factor between the scales of height and width. Log-uniform.
        shift: largest shift, as a share of the crop's sides.
        rotate: largest turn in degrees.
        cut: probability of a framing that cuts off a large part of the body at one side.
        background: probability to exchange the background, where there is a mask.
        second: probability of a second person, cut out from another crop of the batch, where there is a first.
        cover: probability of a thing in front.
        blur, coarse, dark, noise, grey: probabilities of a blurred lens, a low resolution, low light, a noisy sensor
            and a picture without colour.
        jitter: largest relative change of brightness, contrast, colour and white balance.
        nobody: probability of a crop that shows a background only.
    """

    plain: float = 0.5
    flip: float = 0.5
    zoom: tuple[float, float] = (0.75, 1.35)
    aspect: float = 1.3
    shift: float = 0.12
    rotate: float = 10.0
    cut: float = 0.2
    background: float = 0.3
    second: float = 0.25
    cover: float = 0.3
    blur: float = 0.2
    coarse: float = 0.2
    dark: float = 0.15
    noise: float = 0.25
    grey: float = 0.1
    jitter: float = 0.35
    nobody: float = 0.04


class BatchAugment:
    """Changes :class:`~mgran_fast.data.labels.LabelledBatch` after batch; the same seed gives the same changes.

    Args:
        size: (height, width) of the crops that come out.
        backgrounds: uint8 [M, h, w, 3], pictures without people; without any, backgrounds stay as they are, things in
            front are plain, and a crop without a person is noise.
        settings: what happens how often.
    """

    def __init__(
        self,
        size: tuple[int, int],
        backgrounds: torch.Tensor | None = None,
        settings: AugmentSettings | None = None,
    ) -> None:
        self.size, self.settings = size, settings or AugmentSettings()
        self.backgrounds = None if backgrounds is None or len(backgrounds) == 0 else backgrounds

    def __call__(self, batch: LabelledBatch, generator: torch.Generator) -> LabelledBatch:
        """A changed batch: crops of ``size``, as float32 [N, h, w, 3] in 0 to 255; masks uint8 of the same size.

        Args:
            batch: crops uint8 [N, H, W, 3] and what is known of them.
            generator: on the CPU, whatever the batch's device: the draws do not depend on the device.
        """
        height, width = self.size
        if len(batch) == 0:
            pixels = torch.zeros((0, height, width, 3), device=batch.crops.device)
            return replace(batch, crops=pixels, masks=batch.masks.new_zeros((0, height, width)))
        draw = _Draw(len(batch), generator, batch.crops.device, self.settings.plain)
        scene = self._framed(batch, draw)
        self._placed(scene, draw)
        self._second(scene, draw)
        self._covered(scene, draw)
        self._emptied(scene, draw)
        self._seen(scene, draw)
        scene.pixels.clamp_(0, 255)
        x, y = scene.keypoints[..., 0], scene.keypoints[..., 1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        scene.keypoints[..., 2] *= inside
        return replace(
            batch,
            crops=scene.pixels.permute(0, 2, 3, 1),
            masks=(scene.alpha[:, 0] * 255).round().to(torch.uint8),
            keypoints=scene.keypoints,
            has_mask=scene.has_mask,
            has_keypoints=scene.has_keypoints,
            presence=scene.presence,
        )

    def _framed(self, batch: LabelledBatch, draw: _Draw) -> _Scene:
        """Mirror, turn, stretch and shift: one resampling of pixels and mask."""
        s = self.settings
        height, width = self.size
        mirrored = torch.where(draw.uniform(0, 1) < s.flip, -1.0, 1.0)
        zoom = draw.log_uniform(*s.zoom) ** draw.reach
        stretch = draw.log_uniform(1 / s.aspect, s.aspect).sqrt() ** draw.reach
        angle = draw.uniform(-s.rotate, s.rotate) * math.pi / 180 * draw.reach
        dx, dy = (draw.uniform(-s.shift, s.shift) * 2 * draw.reach for _ in range(2))
        # A cut: zoom in, and look at one end of the body: top, bottom, left or right.
        cut, side, more = draw.chance(s.cut), draw.index(4), draw.uniform(1.2, 2.2)
        zoom = torch.where(cut, zoom * more, zoom)
        reach = torch.where(cut, (1 - 1 / more).clamp(min=0), torch.zeros_like(more))
        dy = dy + torch.where(side == 0, -reach, torch.where(side == 1, reach, torch.zeros_like(reach)))
        dx = dx + 0.6 * torch.where(side == 2, -reach, torch.where(side == 3, reach, torch.zeros_like(reach)))
        # From the result to the source, both in [-1, 1]: turn in pixels, not in the squeezed square.
        ratio = width / height
        cos, sin = angle.cos(), angle.sin()
        sx, sy = mirrored * stretch / zoom, 1 / (stretch * zoom)
        rows = (
            torch.stack((cos * sx, -sin / ratio * sx, dx), 1),
            torch.stack((sin * ratio * sy, cos * sy, dy), 1),
        )
        theta = torch.stack(rows, 1)
        grid = functional.affine_grid(theta, [draw.n, 1, height, width], align_corners=False)
        # Nothing before it: with the settings' defaults it shrinks by little more than two, which aliases little.
        source = batch.crops.permute(0, 3, 1, 2).float()
        pixels = functional.grid_sample(source, grid, padding_mode="border", align_corners=False)
        alpha = functional.grid_sample(batch.masks[:, None].float() / 255, grid, align_corners=False)
        # Beyond the source is nobody's picture: another background, where there is one.
        beyond = (grid.abs() > 1).any(3)[:, None]
        if (fresh := self._backdrop(draw)) is not None:
            pixels = torch.where(beyond, fresh, pixels)
        return _Scene(
            pixels,
            alpha,
            _moved(batch, theta, self.size, mirrored),
            batch.has_mask.clone(),
            batch.has_keypoints.clone(),
            batch.presence.clone(),
        )

    def _backdrop(self, draw: _Draw) -> torch.Tensor | None:
        """A background for each crop, float32 [N, 3, h, w], cropped and mirrored at random."""
        if self.backgrounds is None:
            return None
        chosen = self.backgrounds[draw.index(len(self.backgrounds)).to(self.backgrounds.device)]
        zoom, sign = draw.uniform(0.4, 1.0), torch.where(draw.chance(0.5), -1.0, 1.0)
        dx, dy = draw.uniform(-1, 1) * (1 - zoom), draw.uniform(-1, 1) * (1 - zoom)
        zero = torch.zeros_like(zoom)
        theta = torch.stack((torch.stack((zoom * sign, zero, dx), 1), torch.stack((zero, zoom, dy), 1)), 1)
        grid = functional.affine_grid(theta, [draw.n, 1, *self.size], align_corners=False)
        pixels = chosen.to(draw.device).permute(0, 3, 1, 2).float()
        return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)

    def _placed(self, scene: _Scene, draw: _Draw) -> None:
        fresh = self._backdrop(draw)
        chosen = draw.chance(self.settings.background) & scene.has_mask
        if fresh is None:
            return
        # A person cut out hard or soft, and lit like the new place, or not.
        hard = draw.uniform(1.0, 3.0)[:, None, None, None]
        alpha = ((scene.alpha - 0.5) * hard + 0.5).clamp(0, 1)
        pixels = alpha * scene.pixels + (1 - alpha) * fresh
        scene.pixels = torch.where(chosen[:, None, None, None], pixels, scene.pixels)

    def _second(self, scene: _Scene, draw: _Draw) -> None:
        """Somebody else from the batch, off to one side, behind the person or before; not where nobody is."""
        if draw.n < 2:
            return
        # Nobody is put beside the own mirror image: the next of the batch is taken.
        other = torch.arange(draw.n, device=draw.device).roll(1)
        # Beside nobody the other one would be a person whom the labels deny.
        there = scene.presence > 0.5
        chosen = draw.chance(self.settings.second) & scene.has_mask[other] & there[other] & there
        away = draw.uniform(0.7, 1.5) * torch.where(draw.chance(0.5), -1.0, 1.0)
        zoom, drop = draw.log_uniform(0.7, 1.3), draw.uniform(-0.3, 0.3)
        zero = torch.zeros_like(zoom)
        theta = torch.stack((torch.stack((zoom, zero, away), 1), torch.stack((zero, zoom, drop), 1)), 1)
        grid = functional.affine_grid(theta, [draw.n, 1, *self.size], align_corners=False)
        theirs = functional.grid_sample(scene.pixels[other], grid, padding_mode="border", align_corners=False)
        alpha = functional.grid_sample(scene.alpha[other], grid, align_corners=False)
        alpha = alpha * chosen[:, None, None, None]
        # Behind needs to know where the person is; whoever has no mask has the other one before.
        behind = (draw.chance(0.6) & scene.has_mask)[:, None, None, None]
        alpha = torch.where(behind, alpha * (1 - scene.alpha), alpha)
        scene.pixels = alpha * theirs + (1 - alpha) * scene.pixels
        scene.cover(torch.where(behind, torch.zeros_like(alpha), alpha))

    def _covered(self, scene: _Scene, draw: _Draw) -> None:
        """A thing in front: a box from the bottom, a side, or anywhere, of one colour or textured."""
        height, width = self.size
        chosen = draw.chance(self.settings.cover)
        y = torch.arange(height, device=draw.device)[None] / height
        x = torch.arange(width, device=draw.device)[None] / width
        h, w = draw.uniform(0.08, 0.4)[:, None], draw.uniform(0.1, 0.6)[:, None]
        from_below = draw.chance(0.4)[:, None]
        w = torch.where(from_below, draw.uniform(0.5, 1.2)[:, None], w)
        top = torch.where(from_below, 1 - h, draw.uniform(0, 1)[:, None] - h / 2)
        left = draw.uniform(-0.1, 1.1)[:, None] - w / 2
        inside = ((y >= top) & (y < top + h))[:, :, None] & ((x >= left) & (x < left + w))[:, None]
        alpha = (inside & chosen[:, None, None])[:, None].float()
        colour = draw.uniform(0, 255, 3)[:, :, None, None]
        thing = colour + 12 * draw.normal((1, *self.size))
        if (fresh := self._backdrop(draw)) is not None:
            thing = torch.where(draw.chance(0.6)[:, None, None, None], fresh, thing)
        scene.pixels = alpha * thing + (1 - alpha) * scene.pixels
        scene.cover(alpha)

    def _emptied(self, scene: _Scene, draw: _Draw) -> None:
        chosen = draw.chance(self.settings.nobody)
        fresh = self._backdrop(draw)
        if fresh is None:
            fresh = draw.uniform(0, 255, 3)[:, :, None, None] + 40 * draw.normal((3, *self.size))
        scene.pixels = torch.where(chosen[:, None, None, None], fresh, scene.pixels)
        scene.alpha = scene.alpha * ~chosen[:, None, None, None]
        scene.keypoints[..., 2] *= ~chosen[:, None]
        scene.presence = scene.presence * ~chosen
        scene.has_mask = scene.has_mask | chosen
        scene.has_keypoints = scene.has_keypoints | chosen

    def _seen(self, scene: _Scene, draw: _Draw) -> None:
        """Light, lens and sensor of another camera."""
        s, p = self.settings, scene.pixels
        p = _where(draw.chance(s.blur), _blurred(p, draw.uniform(0.5, 1.8)), p)
        small = (max(8, self.size[0] // 3), max(4, self.size[1] // 3))
        coarse = functional.interpolate(p, size=small, mode="area")
        p = _where(draw.chance(s.coarse), functional.interpolate(coarse, size=self.size, mode="bilinear"), p)
        mean = p.mean((1, 2, 3), keepdim=True)
        reach = s.jitter * draw.reach
        p = (p - mean) * _each(1 + draw.uniform(-1, 1) * reach) + mean
        p = p * _each(1 + draw.uniform(-1, 1) * reach)
        p = p * (1 + draw.uniform(-0.5, 0.5, 3) * reach[:, None])[:, :, None, None]
        grey = p.mean(1, keepdim=True)
        p = grey + (p - grey) * _each(1 + draw.uniform(-1, 1) * reach)
        p = _where(draw.chance(s.grey), grey.expand_as(p), p)
        p = _where(draw.chance(s.dark), p * _each(draw.uniform(0.15, 0.5)), p)
        p = p + draw.normal((3, *self.size)) * _each(draw.chance(s.noise) * draw.uniform(2, 14))
        scene.pixels = p


@dataclass
class _Scene:
    """A batch on its way: pixels [N, 3, h, w] in 0 to 255, the share alpha [N, 1, h, w] that is the person."""

    pixels: torch.Tensor
    alpha: torch.Tensor
    keypoints: torch.Tensor
    has_mask: torch.Tensor
    has_keypoints: torch.Tensor
    presence: torch.Tensor

    def cover(self, thing: torch.Tensor) -> None:
        """Take away what ``thing`` [N, 1, h, w] in [0, 1] covers."""
        self.alpha = self.alpha * (1 - thing)
        height, width = thing.shape[2:]
        x = self.keypoints[..., 0].long().clamp(0, width - 1)
        y = self.keypoints[..., 1].long().clamp(0, height - 1)
        covered = thing[:, 0].flatten(1).gather(1, y * width + x)
        self.keypoints[..., 2] *= 1 - (1 - COVERED) * covered


class _Draw:
    """Random numbers, one for each crop of the batch; drawn on the CPU, so the same on every device."""

    def __init__(self, n: int, generator: torch.Generator, device: torch.device, plain: float = 0.0) -> None:
        self.n, self.generator, self.device = n, generator, device
        self.changed = self.uniform(0, 1) >= plain
        #: How far ranges reach: all the way, or _PLAIN_REACH of it for a plain crop.
        self.reach = torch.where(self.changed, 1.0, _PLAIN_REACH)

    def uniform(self, low: float, high: float, columns: int | None = None) -> torch.Tensor:
        shape = (self.n,) if columns is None else (self.n, columns)
        return (low + (high - low) * torch.rand(shape, generator=self.generator)).to(self.device)

    def log_uniform(self, low: float, high: float) -> torch.Tensor:
        return self.uniform(math.log(low), math.log(high)).exp()

    def chance(self, probability: float) -> torch.Tensor:
        return (self.uniform(0, 1) < probability) & self.changed

    def index(self, end: int) -> torch.Tensor:
        return torch.randint(end, (self.n,), generator=self.generator).to(self.device)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn((self.n, *shape), generator=self.generator).to(self.device)


def _moved(batch: LabelledBatch, theta: torch.Tensor, size: tuple[int, int], mirrored: torch.Tensor) -> torch.Tensor:
    """The keypoints where the framing ``theta`` [N, 2, 3] (result to source) has brought them; a copy."""
    height, width = batch.crops.shape[1:3]
    source = torch.stack((batch.keypoints[..., 0] / width, batch.keypoints[..., 1] / height), 2) * 2 - 1
    # An affine map is undone on its 2 x 2 part: solve A p = q - t.
    there = torch.linalg.solve(theta[:, :, :2], (source - theta[:, None, :, 2]).transpose(1, 2)).transpose(1, 2)
    place = (there + 1) / 2 * torch.tensor([size[1], size[0]], device=theta.device)
    moved = torch.cat((place, batch.keypoints[..., 2:]), 2)
    return torch.where((mirrored < 0)[:, None, None], moved[:, list(KEYPOINT_FLIP)], moved)


def _each(value: torch.Tensor) -> torch.Tensor:
    return value[:, None, None, None]


def _where(chosen: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    return torch.where(_each(chosen), yes, no)


def _blurred(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Each picture [N, 3, h, w] blurred by a Gaussian of its own sigma [N], in pixels, cut off at 4 pixels."""
    n, _, height, width = pixels.shape
    reach = torch.arange(-4, 5, device=pixels.device)
    kernel = torch.exp(-0.5 * (reach[None] / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # [3N, 9]
    flat = pixels.reshape(1, 3 * n, height, width)
    flat = functional.pad(flat, (4, 4, 4, 4), mode="replicate")
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=3 * n)
    flat = functional.conv2d(flat, kernel[:, None, :, None], groups=3 * n)
    return flat.view(n, 3, height, width)
