"""Body layouts: which limbs, between which keypoints, make up which region.

A layout is a table, not code. It lists groups of *limbs* (segments between two joints); a foreground
pixel belongs to the group of its nearest limb, where the distance to a limb is divided by the limb's
thickness. The torso is a filled quadrilateral as well: a pixel inside it is at distance 0.

Joints are the 17 COCO keypoints plus two midpoints, ``neck`` (of the shoulders) and ``pelvis`` (of the
hips). No limb is its own mirror image, which makes the geometry equivariant to a horizontal flip, to the bit, but
for ties between a left and a right limb (and the left and right bands of a box of odd width).

The published system says only that head, upper body and lower body are told apart; the grouping, the
thicknesses and the fallback bands below are this library's decision.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The COCO keypoints, in order. A keypoint array is [N, 17, 3]: x, y in pixels of the crop, score.
KEYPOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
#: ``keypoints[:, KEYPOINT_FLIP]`` exchanges left and right, as a mirrored picture wants it.
KEYPOINT_FLIP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
#: The keypoints and the two midpoints that limbs may end at.
JOINTS = (*KEYPOINTS, "neck", "pelvis")
#: Fallback bands are given in this fraction of the mask's bounding box.
BAND_UNITS = 24
#: Cuts are given in this fraction of the frame; the cut of a region whose layout names none.
CUT_UNITS, CUT = 8, (4, 6)
# What the kernels have room for (csrc/regions.h).
MOST_REGIONS, MOST_LIMBS = 15, 32


@dataclass(frozen=True)
class Limb:
    """A segment between two joints that belongs to ``group`` (1-based)."""

    group: int
    start: str
    end: str
    thickness: float


@dataclass(frozen=True)
class Band:
    """A rectangle of the mask's box, in 1/24 of its height and width: the fallback without keypoints."""

    group: int
    top: int
    bottom: int
    left: int = 0
    right: int = BAND_UNITS


@dataclass(frozen=True)
class Layout:
    """A body layout.

    Attributes:
        name: what ``layout=`` is called by.
        groups: the names of the regions; region ``i`` of a region map is ``groups[i - 1]``.
        flip: ``flip[i]`` is the region that region ``i`` becomes in a mirrored picture; ``flip[0] == 0``.
        limbs: the limbs, in order of their group: on a tie the lower group wins.
        torso: the group of the quadrilateral left shoulder, right shoulder, right hip, left hip; 0 for none.
        bands: the regions of a person without a single usable keypoint.
        rectangles: every region is filled up to its bounding rectangle (rectangular RoI), background included.
        whole: the map is 1 everywhere; masks and keypoints are not looked at.
        cuts: for the shape crop of :class:`mgran_fast.MGRAN`, of each region the frame that it is resized to, in
            1/8 of the height and width of a whole frame; CUT for each where there are none.
    """

    name: str
    groups: tuple[str, ...]
    flip: tuple[int, ...]
    limbs: tuple[Limb, ...] = ()
    torso: int = 0
    bands: tuple[Band, ...] = ()
    rectangles: bool = False
    whole: bool = False
    cuts: tuple[tuple[int, int], ...] = ()

    @property
    def regions(self) -> int:
        """The number R of regions; a model has 1 + R inputs."""
        return len(self.groups)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the 1 + R inputs: the whole person first."""
        return ("global", *self.groups)

    def region_sizes(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Of each region (h, w) in pixels of its cut, for whole frames of ``size`` (H, W) pixels; 1 pixel at least."""
        cuts = self.cuts or (CUT,) * self.regions
        return tuple((max(1, size[0] * rows // CUT_UNITS), max(1, size[1] * columns // CUT_UNITS))
                     for rows, columns in cuts)  # fmt: skip

    def __post_init__(self) -> None:
        r = len(self.groups)
        if self.cuts and (len(self.cuts) != r or any(min(cut) < 1 for cut in self.cuts)):
            raise ValueError(f"layout {self.name!r}: cuts must be {r} pairs of positive numbers, one for each region")
        if sorted(self.flip) != list(range(r + 1)) or self.flip[0] != 0:
            raise ValueError(f"layout {self.name!r}: flip must be a permutation of 0..{r} that leaves 0 alone")
        groups = [limb.group for limb in self.limbs]
        if groups != sorted(groups) or any(not 1 <= g <= r for g in groups):
            raise ValueError(f"layout {self.name!r}: limbs must be sorted by group, groups between 1 and {r}")
        for limb in self.limbs:
            if limb.start not in JOINTS or limb.end not in JOINTS:
                raise ValueError(f"layout {self.name!r}: no joint {limb.start!r} or {limb.end!r}; there are {JOINTS}")
            if not limb.thickness > 0:
                raise ValueError(f"layout {self.name!r}: the thickness of {limb.start}-{limb.end} must be positive")
        if any(not 1 <= band.group <= r for band in self.bands) or not 0 <= self.torso <= r:
            raise ValueError(f"layout {self.name!r}: torso and the bands' groups must be between 1 and {r}")
        if r > MOST_REGIONS or max(len(self.limbs), len(self.bands)) > MOST_LIMBS:
            raise ValueError(f"layout {self.name!r}: at most {MOST_REGIONS} regions, {MOST_LIMBS} limbs and bands")
        if not self.whole and not (self.limbs and self.bands):
            raise ValueError(f"layout {self.name!r} needs limbs, and bands to fall back to")


# Thicknesses are relative to each other. 1.6 for the head puts its border with the torso at six tenths of the
# way from the nose to the shoulder line, at the neck; arms are thin, so that a hand at the hip takes little
# of the leg beside it.
_HEAD, _TORSO, _ARM, _LEG = 1.6, 1.0, 0.7, 1.0


def _head(group: int) -> tuple[Limb, ...]:
    # The first limb is a single point, so that a head of which only the nose is seen is still a head.
    return (
        Limb(group, "nose", "nose", _HEAD),
        Limb(group, "nose", "left_eye", _HEAD),
        Limb(group, "nose", "right_eye", _HEAD),
        Limb(group, "left_eye", "left_ear", _HEAD),
        Limb(group, "right_eye", "right_ear", _HEAD),
    )


def _torso(group: int) -> tuple[Limb, ...]:
    # The outline from its midpoints outwards (no limb mirrors onto itself), and the spine, which is all
    # that is left of the torso when it is seen from the side with a shoulder and a hip hidden.
    return (
        Limb(group, "neck", "left_shoulder", _TORSO),
        Limb(group, "neck", "right_shoulder", _TORSO),
        Limb(group, "left_shoulder", "left_hip", _TORSO),
        Limb(group, "right_shoulder", "right_hip", _TORSO),
        Limb(group, "pelvis", "left_hip", _TORSO),
        Limb(group, "pelvis", "right_hip", _TORSO),
        Limb(group, "neck", "pelvis", _TORSO),
    )


def _arm(group: int, side: str) -> tuple[Limb, ...]:
    return (
        Limb(group, f"{side}_shoulder", f"{side}_elbow", _ARM),
        Limb(group, f"{side}_elbow", f"{side}_wrist", _ARM),
    )


def _leg(group: int, side: str) -> tuple[Limb, ...]:
    return (
        Limb(group, f"{side}_hip", f"{side}_knee", _LEG),
        Limb(group, f"{side}_knee", f"{side}_ankle", _LEG),
    )


_THREE = ("head", "upper body", "lower body")
_THREE_LIMBS = (*_head(1), *_torso(2), *_arm(2, "left"), *_arm(2, "right"), *_leg(3, "left"), *_leg(3, "right"))
_THREE_BANDS = (Band(1, 0, 4), Band(2, 4, 12), Band(3, 12, 24))

# At 256x128: 64x64, 96x96 and 128x96, together less than one frame.
_THREE_CUTS = ((2, 4), (3, 6), (4, 6))

REGION = Layout("region", _THREE, (0, 1, 2, 3), _THREE_LIMBS, torso=2, bands=_THREE_BANDS, cuts=_THREE_CUTS)
PART = Layout(
    "part",
    ("head", "torso", "left arm", "right arm", "left leg", "right leg"),
    (0, 1, 2, 4, 3, 6, 5),
    (*_head(1), *_torso(2), *_arm(3, "left"), *_arm(4, "right"), *_leg(5, "left"), *_leg(6, "right")),
    torso=2,
    # Without keypoints nobody knows which way the person looks; facing the camera is assumed, and arms stay unseen.
    bands=(Band(1, 0, 4), Band(2, 4, 12), Band(6, 12, 24, 0, 12), Band(5, 12, 24, 12, 24)),
    cuts=((2, 4), (3, 6), (3, 4), (3, 4), (4, 4), (4, 4)),
)
BOX = Layout("box", _THREE, (0, 1, 2, 3), _THREE_LIMBS, torso=2, bands=_THREE_BANDS, rectangles=True, cuts=_THREE_CUTS)
NONE = Layout("none", (), (0,), whole=True)

_LAYOUTS = {layout.name: layout for layout in (REGION, PART, BOX, NONE)}


def register(layout: Layout) -> Layout:
    """Make a layout of your own known by its name. Raises ValueError when the name is taken by another one."""
    if _LAYOUTS.setdefault(layout.name, layout) != layout:
        raise ValueError(f"there is a layout {layout.name!r} already")
    return layout


def get(layout: str | Layout) -> Layout:
    """The layout of this name (a layout passes through). Raises ValueError for an unknown name."""
    if isinstance(layout, Layout):
        return register(layout)
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(sorted(_LAYOUTS))}, not {layout!r}")
    return _LAYOUTS[layout]
