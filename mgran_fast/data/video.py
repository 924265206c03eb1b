"""The frames of a video, with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgran_fast.errors import DataError, MGRANError

#: How files of videos end.
SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: its place in the video, from 0.
        pixels: uint8 [H, W, 3], RGB.
    """

    number: int
    pixels: NDArray[np.uint8]


def is_video(path: Path) -> bool:
    """By the name, which is all that is looked at."""
    return path.suffix.lower() in SUFFIXES


def count_frames(path: Path) -> int:
    """How many frames the file says that it has; 0 where it does not say. Errors as for :func:`frames`."""
    with _opened(path) as container:
        return int(container.streams.video[0].frames)


def frames(path: Path) -> Iterator[Frame]:
    """The frames of the first video stream, in the order in which they are shown.

    Raises:
        DataError: no such file, no video, or one that breaks off: the frames before it have come by then.
        MGRANError: PyAV is not installed.
    """
    import_av()
    from av.error import FFmpegError

    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        number = -1
        try:
            for number, frame in enumerate(container.decode(stream)):
                pixels = frame.to_ndarray(format="rgb24")
                # As players show it: a telephone that is held upright writes frames that lie, and by how much.
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                yield Frame(number, np.ascontiguousarray(np.rot90(pixels, turns)))
        except FFmpegError as error:
            raise DataError(
                f"{path}: frame {number + 1} cannot be decoded ({error.strerror}); cut the video before it, or write it"
                " again"
            ) from error
        if number < 0:
            raise DataError(f"{path}: a video without a frame; take another copy")


def import_av() -> Any:
    """The module of PyAV. Raises MGRANError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise MGRANError("videos take PyAV, which is not installed: pip install 'mgran_fast[video]'") from error
    return av


def _opened(path: Path) -> Any:
    av = import_av()
    # torchvision 0.21 has FFmpeg's messages go through Python: a decoder's thread with one then waits for the
    # interpreter, which whoever closes the decoder holds, for ever.
    av.logging.set_level(None)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a video, {', '.join(SUFFIXES)}")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a video that can be read ({error}); write it again") from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: there is no picture in it, only sound; give another file")
    return container
