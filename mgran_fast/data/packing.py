"""The few bytes that the regions and keypoints of a crop take in a region cache."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
from numpy.typing import NDArray

from mgran_fast.layouts import KEYPOINTS

# Keypoints may lie outside of the crop. Four sides of it is further than any op looks.
_REACH, _STEPS = 4, 32767


def picture_digest(content: bytes) -> bytes:
    """BLAKE2b (8 bytes) of a picture file."""
    return hashlib.blake2b(content, digest_size=8).digest()


def pack_map(region_map: NDArray[np.uint8]) -> bytes:
    """A region map uint8 [H, W] as runs of equal pixels in reading order, deflated.

    Three planes of one byte a run: value, low and high byte of the length. Runs compress better than pixels do
    (516 bytes a crop of 256x128 against 592 for two bits a pixel, each row less the one above) and in a tenth of the
    time: deflate is slow on long repetitions.
    """
    flat = region_map.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    lengths, values = np.diff(ends, prepend=-1), flat[ends]
    if lengths.max() > 0xFFFF:
        parts = (lengths + 0xFFFE) // 0xFFFF
        rest = lengths - (parts - 1) * 0xFFFF
        last = parts.cumsum() - 1
        values, lengths = values.repeat(parts), np.full(int(parts.sum()), 0xFFFF)
        lengths[last] = rest
    planes = np.concatenate([values, lengths.astype(np.uint8), (lengths >> 8).astype(np.uint8)])
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(planes.tobytes()) + deflate.flush()


def unpack_map(packed: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The inverse of :func:`pack_map`, uint8 [H, W] and writable. Raises ValueError or zlib.error."""
    planes = np.frombuffer(zlib.decompress(packed, -15, 4096), np.uint8).reshape(3, -1)
    lengths = planes[1].astype(np.intp)
    if planes[2].any():
        lengths += planes[2].astype(np.intp) << 8
    region_map: NDArray[np.uint8] = planes[0].repeat(lengths).reshape(size)
    return region_map


def pack_keypoints(keypoints: NDArray[np.float32], size: tuple[int, int]) -> bytes:
    """Keypoints float32 [17, 3] of a crop of ``size`` in 85 bytes.

    x and y as int16 in steps of 4/32767 of the longer side (1/32 pixel for 256x128), up to four of it away; the score
    as uint8, in steps of 1/255. What is further away, or no number, is moved there and gets a score of 0: no op uses
    it either way.
    """
    quantum = _REACH * max(size) / _STEPS
    steps = keypoints[:, :2].astype(np.float64) / quantum
    usable = (np.abs(steps) <= _STEPS).all(axis=1) & np.isfinite(keypoints[:, 2])
    # False for NaN, so nothing that is no number is left below.
    places = np.where(usable[:, None], np.rint(np.where(usable[:, None], steps, 0)), _STEPS).astype("<i2")
    scores = np.floor(np.where(usable, keypoints[:, 2], 0).clip(0, 1).astype(np.float64) * 255 + 0.5)
    return places.tobytes() + scores.astype(np.uint8).tobytes()


def unpack_keypoints(packed: bytes, size: tuple[int, int]) -> NDArray[np.float32]:
    """The inverse of :func:`pack_keypoints`: float32 [17, 3]. Raises ValueError."""
    count = len(KEYPOINTS)
    keypoints = np.empty((count, 3), np.float32)
    keypoints[:, :2] = np.frombuffer(packed, "<i2", 2 * count).reshape(count, 2) * (_REACH * max(size) / _STEPS)
    keypoints[:, 2] = np.frombuffer(packed, np.uint8, count, 4 * count) * (1 / 255)
    return keypoints


def checksum(name: str, digest: bytes, flags: int, presence: float, keypoints: bytes, region_map: bytes) -> int:
    """CRC-32 of one record."""
    head = digest + f"{flags} {presence!r} {name}".encode()
    return zlib.crc32(region_map, zlib.crc32(keypoints, zlib.crc32(head)))
