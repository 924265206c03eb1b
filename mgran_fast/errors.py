"""The errors that people make, told in one line that names the file or the argument and what to do."""

from __future__ import annotations


class MGRANError(Exception):
    """Base of the errors that the command line prints without a traceback."""


class DataError(MGRANError, ValueError):
    """A folder, picture, mask or keypoint file is missing, unreadable or inconsistent."""


class CheckpointError(MGRANError, ValueError):
    """A checkpoint does not fit: another layout, class count, trunk, or not a checkpoint at all."""
