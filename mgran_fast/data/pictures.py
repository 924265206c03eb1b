"""Read a picture or a mask from a file, whatever way it is stored."""

from __future__ import annotations

import functools
import logging
import os
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mgran_fast.errors import DataError

_log = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # the EXIF tag


def read_picture(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a picture as RGB.

    The EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures are converted; what is transparent
    becomes black, the background value of MGRAN's inputs.

    Args:
        path: any file that Pillow reads.
        size: (height, width) in pixels to resize to, bilinear with antialiasing, by torch or Pillow, whichever is
            faster here: their results differ by 1 at most. None keeps the picture's own.

    Returns:
        uint8 [H, W, 3], 0 to 255, contiguous and writable.

    Raises:
        DataError: the file is missing, truncated or no picture; one line that names it.
    """
    return read_picture_and_shape(path, size)[0]


def read_picture_and_shape(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """:func:`read_picture`, and the (height, width) that the picture had before it was resized."""
    try:
        picture = _read(path, "RGB")
    except Exception as error:
        raise _unreadable(path, "picture", error) from error
    shape = (picture.height, picture.width)
    return np.array(picture) if size is None or size == shape else _resized(picture, size), shape


def read_mask(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a mask: uint8 [h, w], a pixel's value / 255 is the probability that it shows the person.

    A colour picture is converted to grey, a 1-bit one to 0 and 255, a 16-bit one is scaled. Raises DataError like
    :func:`read_picture`.
    """
    try:
        return np.array(_read(path, "L"))
    except Exception as error:
        raise _unreadable(path, "mask", error) from error


def _read(path: str | os.PathLike[str], mode: str) -> Image.Image:
    try:
        return _decode(path, mode)
    except Warning:
        # Pillow warns of things that spoil no pixel, such as broken EXIF data; where warnings are errors, it would
        # stop at them. Not silenced from the start, for that is neither free nor safe across threads.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(path, mode)


def _decode(path: str | os.PathLike[str], mode: str) -> Image.Image:
    with Image.open(path) as picture:
        plain = _without_alpha(_upright(picture))
        # convert copies even where there is nothing to convert.
        return plain if plain.mode == mode else plain.convert(mode)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        if "exif" in picture.info and picture.getexif().get(_ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(picture)
    except Warning:
        raise
    except Exception as error:
        # A truncated picture fails again when its pixels are read; broken EXIF data says nothing about them.
        _log.debug("EXIF data ignored: %s", error)
    return picture


def _without_alpha(picture: Image.Image) -> Image.Image:
    """The picture in a mode without transparency and with 8 bits a channel."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        black = Image.new("RGBA", clear.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, clear)
    picture.load()
    return picture


@functools.cache
def _torch_resizes() -> bool:
    """Whether torch has vectorised code for it here; without it takes twice Pillow's time, with it a quarter."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _resized(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    if not _torch_resizes():
        return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    # In torch's eyes channels_last, so that nothing is copied before and after.
    image = torch.from_numpy(np.array(picture))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    result: NDArray[np.uint8] = resized[0].permute(1, 2, 0).contiguous().numpy()
    return result


def _unreadable(path: str | os.PathLike[str], what: str, error: Exception) -> DataError:
    # A broken file makes Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, EOFError.
    name = os.fspath(path)
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such {what}; check the path")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{name}: a folder, not a {what}; check the path")
    if isinstance(error, PermissionError):
        return DataError(f"{name}: the {what} may not be read; check the file's permissions")
    if isinstance(error, UnidentifiedImageError):
        reason = "not a picture file, or an empty one"
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{name}: the {what} cannot be read ({reason}); replace the file or remove it")
