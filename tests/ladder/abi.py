"""The launch ABI of csrc/*.h for Python: the structs, and calls on buffers of a case's own.

A case (see cases.py) names the fields of its struct by path, such as ``layout.limbs``. Here its numbers and buffers
become the bytes of the struct.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cases import Case

OK, NO_MEMORY, UNSUPPORTED, LAUNCH = 0, 1, 2, 3
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
MEAN, MAX, GEM = 0, 1, 2
MAX_LIMBS, MAX_REGIONS = 32, 15
REGIONS_WORKSPACE = 4 * (2 + MAX_REGIONS)  # int32 a person

_pointer, _i64, _i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


def _struct(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Crops = _struct(
    "Crops",
    frame=_pointer,
    boxes=_pointer,
    out=_pointer,
    count=_i64,
    row_stride=_i64,
    frame_height=_i32,
    frame_width=_i32,
    height=_i32,
    width=_i32,
)
Layout = _struct(
    "Layout",
    limbs=_pointer,
    weights=_pointer,
    bands=_pointer,
    limb_count=_i32,
    band_count=_i32,
    torso=_i32,
    rectangles=_i32,
    regions=_i32,
)
Regions = _struct(
    "Regions",
    mask=_pointer,
    keypoints=_pointer,
    map=_pointer,
    workspace=_pointer,
    people=_i64,
    mask_height=_i32,
    mask_width=_i32,
    height=_i32,
    width=_i32,
    mask_is_float=_i32,
    limit=ctypes.c_double,
    keypoint_threshold=ctypes.c_float,
    layout=Layout,
)
Inputs = _struct(
    "Inputs",
    crops=_pointer,
    map=_pointer,
    out=_pointer,
    workspace=_pointer,
    people=_i64,
    pixels=_i64,
    regions=_i32,
    dtype=_i32,
    scale=ctypes.c_float,
    mean=ctypes.c_float * 3,
    std=ctypes.c_float * 3,
)
Align = _struct("Align", regions=Regions, inputs=Inputs)
Pooling = _struct(
    "Pooling",
    features=_pointer,
    map=_pointer,
    region=_pointer,
    out=_pointer,
    grad_out=_pointer,
    grad_features=_pointer,
    rows=_i64,
    people=_i64,
    channels=_i64,
    height=_i32,
    width=_i32,
    map_height=_i32,
    map_width=_i32,
    dtype=_i32,
    mode=_i32,
    power=ctypes.c_float,
)
Batchnorm = _struct(
    "Batchnorm",
    x=_pointer,
    residual=_pointer,
    grad=_pointer,
    out=_pointer,
    out_residual=_pointer,
    weight=_pointer,
    bias=_pointer,
    mean=_pointer,
    var=_pointer,
    invstd=_pointer,
    scale=_pointer,
    shift=_pointer,
    grad_bias=_pointer,
    grad_weight=_pointer,
    grad_bias_mean=_pointer,
    grad_weight_mean=_pointer,
    counts=_pointer,
    rows=_i64,
    cells=_i64,
    channels=_i64,
    groups=_i32,
    dtype=_i32,
    relu=_i32,
    phases=_i32,
    eps=ctypes.c_float,
)
Rows = _struct(
    "Rows",
    x=_pointer,
    index=_pointer,
    starts=_pointer,
    members=_pointer,
    base=_pointer,
    out=_pointer,
    rows=_i64,
    count=_i64,
    channels=_i64,
    pitch=_i64,
    dtype=_i32,
)
Ranking = _struct(
    "Ranking",
    values=_pointer,
    query_terms=_pointer,
    gallery_terms=_pointer,
    begins=_pointer,
    ends=_pointer,
    members=_pointer,
    nobody=_pointer,
    query_cameras=_pointer,
    gallery_cameras=_pointer,
    ap=_pointer,
    inp=_pointer,
    first=_pointer,
    nan=_pointer,
    queries=_i64,
    gallery=_i64,
    count=_i64,
    nobodies=_i64,
    is_double=_i32,
    metric=_i32,
    ties=_i32,
    trapezoid=_i32,
)
Shots = _struct(
    "Shots",
    values=_pointer,
    query_terms=_pointer,
    gallery_terms=_pointer,
    persons=_pointer,
    begins=_pointer,
    members=_pointer,
    query_cameras=_pointer,
    gallery_cameras=_pointer,
    found=_pointer,
    first=_pointer,
    nan=_pointer,
    queries=_i64,
    gallery=_i64,
    people=_i64,
    ranks=_i64,
    is_double=_i32,
    metric=_i32,
)
Search = _struct(
    "Search",
    query=_pointer,
    entries=_pointer,
    places=_pointer,
    values=_pointer,
    query_terms=_pointer,
    gallery_terms=_pointer,
    distance=_pointer,
    index=_pointer,
    queries=_i64,
    gallery=_i64,
    width=_i64,
    held=_i64,
    begin=_i64,
    k=_i32,
    metric=_i32,
)
Rerank = _struct(
    "Rerank",
    values=_pointer,
    gallery=_pointer,
    neighbours=_pointer,
    largest=_pointer,
    starts=_pointer,
    members=_pointer,
    weights=_pointer,
    counts=_pointer,
    out_members=_pointer,
    out_starts=_pointer,
    out_weights=_pointer,
    column_starts=_pointer,
    column_rows=_pointer,
    column_weights=_pointer,
    out=_pointer,
    rows=_i64,
    width=_i64,
    columns=_i64,
    queries=_i64,
    k=_i32,
    few=_i32,
    capacity=_i32,
)

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "crops": Crops,
    "regions": Regions,
    "inputs": Inputs,
    "align": Align,
    "pooling": Pooling,
    "pooling_backward": Pooling,
    "batchnorm": Batchnorm,
    "batchnorm_backward": Batchnorm,
    "ranking": Ranking,
    "rerank_nearest": Rerank,
    "rerank_expand": Rerank,
    "rerank_pairs": Rerank,
    "rerank_mean": Rerank,
    "rerank_jaccard": Rerank,
    "search_products": Search,
    "search_first": Search,
    "shots": Shots,
    "rows_gather": Rows,
    "rows_total": Rows,
    "rows_invert": Rows,
}


@dataclass
class Buffer:
    """Memory that a kernel gets a pointer to.

    Attributes:
        data: its first contents; garbage for what the kernel writes.
        role: ``in`` (must not change), ``out`` (is compared) or ``scratch`` (workspace: CUDA alone, not compared).
        offset: bytes from a multiple of 16 to where it begins.
    """

    data: np.ndarray
    role: str = "in"
    offset: int = 0


def function(op: str, device: str) -> str:
    """The name of an op's entry point; device is cuda or cpu."""
    return f"mgran_{op}_{device}"


def field_offset(struct: type[ctypes.Structure], path: str) -> tuple[int, Any]:
    """Where a field stands in a struct, and its type."""
    offset, kind = 0, struct
    for name in path.split("."):
        offset += getattr(kind, name).offset
        kind = dict(kind._fields_)[name]  # type: ignore[misc]
    return offset, kind


def pack(case: Case, device: str, addresses: Mapping[str, int]) -> bytes:
    """The struct of a case, its pointers from ``addresses``; a buffer that is not among them stays null."""
    struct = STRUCTS[case.op]
    image = bytearray(ctypes.sizeof(struct))
    for path, value in case.arguments.items():
        offset, kind = field_offset(struct, path)
        if isinstance(value, Buffer):
            content: Any = ctypes.c_void_p(addresses.get(path, 0))
        elif isinstance(value, tuple):
            content = kind(*value)
        else:
            content = kind(value)
        image[offset : offset + ctypes.sizeof(content)] = bytes(content)
    return bytes(image)


def buffers(case: Case, device: str) -> dict[str, Buffer]:
    """The buffers that a device's kernel gets: the CPU needs no workspace."""
    return {
        path: value
        for path, value in case.arguments.items()
        if isinstance(value, Buffer) and (device == "cuda" or value.role != "scratch")
    }


def call(library: ctypes.CDLL, case: Case, device: str, threads: int = 1) -> dict[str, np.ndarray]:
    """Calls the op of a shared library on copies of a case's buffers: what it wrote, by path.

    Every buffer has guard bytes at both ends.

    Raises:
        RuntimeError: the op's status is not OK, it wrote outside of a buffer, or into one that it should only read.
    """
    places = {path: _Place(buffer) for path, buffer in buffers(case, device).items()}
    image = ctypes.create_string_buffer(pack(case, device, {path: place.address for path, place in places.items()}))
    entry = getattr(library, function(case.op, device))
    last: Any = ctypes.c_int(threads) if device == "cpu" else ctypes.c_void_p(None)
    status = entry(image, last)
    if status != OK:
        raise RuntimeError(f"{case.name}: {function(case.op, device)} returns {status}")
    for path, place in places.items():
        if not place.guards_hold():
            raise RuntimeError(f"{case.name}: written outside of {path}")
        if place.buffer.role == "in" and not np.array_equal(place.content(), _bytes(place.buffer.data)):
            raise RuntimeError(f"{case.name}: {path}, which is only to be read, has changed")
    outputs = {path: place for path, place in places.items() if place.buffer.role == "out"}
    return {path: place.content().view(place.buffer.data.dtype) for path, place in outputs.items()}


class _Place:
    """A copy of a buffer between guards, at its offset from a multiple of 16."""

    GUARD, MARK = 64, 0xA5

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        first = _bytes(buffer.data)
        self.memory = np.full(first.size + 2 * self.GUARD + 32, self.MARK, np.uint8)
        base = int(self.memory.ctypes.data) + self.GUARD
        self.start = self.GUARD + (-base) % 16 + buffer.offset % 16
        self.end = self.start + first.size
        self.memory[self.start : self.end] = first
        self.address = int(self.memory.ctypes.data) + self.start

    def content(self) -> np.ndarray:
        return self.memory[self.start : self.end].copy()

    def guards_hold(self) -> bool:
        before, after = self.memory[: self.start], self.memory[self.end :]
        return bool((before == self.MARK).all() and (after == self.MARK).all())


def _bytes(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
