"""Articulated pedestrians drawn with numpy: people, poses, cameras, and what stands in the way.

The parts, from the bottom up: :mod:`canvas` (antialiased shapes), :mod:`person` (what somebody looks like),
:mod:`pose` (joints in space and on the picture), :mod:`figure` (a person in a pose, drawn), :mod:`camera`
(a place and a sensor), :mod:`scene` (all of it together). :mod:`mgran_fast.data.synthetic` is the way in.
"""

from __future__ import annotations

from mgran_fast.data.pedestrian.camera import Camera, camera_of
from mgran_fast.data.pedestrian.figure import draw_figure
from mgran_fast.data.pedestrian.person import Person, person_of
from mgran_fast.data.pedestrian.pose import Pose, Skeleton, sample_pose, skeleton_of
from mgran_fast.data.pedestrian.scene import Scene, compose

__all__ = [
    "Camera",
    "Person",
    "Pose",
    "Scene",
    "Skeleton",
    "camera_of",
    "compose",
    "draw_figure",
    "person_of",
    "sample_pose",
    "skeleton_of",
]
