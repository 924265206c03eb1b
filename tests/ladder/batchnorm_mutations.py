"""Injected bugs of batch norm's Triton kernels: rung ``interpret`` runs them, rung ``triton`` reads their machine code,
rung ``simulate`` runs their PTX."""

from __future__ import annotations

from mutations import Mutation

_FILE, _TABLE = "kernels/batchnorm.py", "kernels/batchnorm.json"
_RUN, _READ, _SIMULATE = ("interpret",), ("triton",), ("simulate",)
_MOMENTS = '{"kernel": "moments", "bytes": 2, "capability": 75, "channels": 256, "rows": 65536, '


def _bug(name: str, old: str, new: str, rungs: tuple[str, ...], file: str = _FILE) -> Mutation:
    return Mutation(f"batchnorm-{name}", file, old, new, rungs)


BATCHNORM_MUTATIONS = (
    _bug("rows-of-another-group", "* groups + group).to", "* groups + (group + 1) % groups).to", _RUN),
    _bug("mask-without-the-residual", "scale, shift, RESIDUAL) <= 0", "scale, shift, False) <= 0", _RUN),
    _bug("mask-passes-zero", "RESIDUAL) <= 0, 0.0, dz)", "RESIDUAL) < 0, 0.0, dz)", _RUN),
    _bug("nan-is-dropped", "z = tl.where(z <= 0, 0.0, z)", "z = tl.where(z > 0, z, 0.0)", _RUN),
    _bug("means-of-unequal-counts", "more + apart * apart * _count", "more + apart * apart * 0 * _count", _RUN),
    _bug("the-last-tile-is-whole", "// splits * tile_rows - missing", "// splits * tile_rows", _RUN),
    _bug("rows-past-the-end-count", "delta = tl.where(inside, value - mean, 0.0)", "delta = value - mean", _RUN),
    _bug("unbiased-variance", "m2 / rows, mask", "m2 / (rows - 1), mask", _RUN),
    _bug("one-share-for-both", "(r * dw)[None, :]", "(r * db)[None, :]", _RUN),
    _bug(
        "xhat-in-16-bits", "dz * (value - m[None, :])", "dz * (value - m[None, :]).to(tl.float16).to(tl.float32)", _RUN
    ),
    _bug("residual-is-not-written", "    if WANT_RESIDUAL:\n", "    if WANT_RESIDUAL and RELU:\n", _RUN),
    _bug(
        "narrow-accesses",
        "row[:, None] * channels + channel[None",
        "row[:, None] * channels + (channel ^ 1)[None",
        _READ,
    ),
    _bug("tile-too-large", _MOMENTS + '"block_rows": 8,', _MOMENTS + '"block_rows": 128,', _READ, _TABLE),
    _bug("too-few-programs", "max(1, blocks.programs // others)", "max(1, blocks.programs // others // 8)", _READ),
    _bug(
        "stores-past-the-last-row",
        "z.to(y.dtype.element_ty), mask=inside)",
        "z.to(y.dtype.element_ty), mask=exists[None, :])",
        _SIMULATE,
    ),
    _bug(
        "stores-past-the-last-channel",
        "slope.to(dx.dtype.element_ty), mask=inside)",
        "slope.to(dx.dtype.element_ty), mask=(place < rows)[:, None])",
        _SIMULATE,
    ),
    _bug(
        "loads-before-the-first-row",
        "mask=inside, other=0.0).to(tl.float32) - origin",
        "mask=exists[None, :], other=0.0).to(tl.float32) - origin",
        _SIMULATE,
    ),
    _bug(
        "sums-past-the-last-split",
        "plain += tl.load(partial + at, mask=inside, other=0.0)",
        "plain += tl.load(partial + at, mask=exists[None, :], other=0.0)",
        _SIMULATE,
    ),
)
