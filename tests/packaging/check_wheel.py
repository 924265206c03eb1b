"""Imports an installed wheel from outside of the checkout: python -I check_wheel.py SITE OFF|AUTO.

Run by ``make package``. The folder SITE comes before the environment's own packages, whose editable install of
the checkout is put aside.
"""

from __future__ import annotations

import pathlib
import shutil
import sys


def main(site: str, cuda: str) -> None:
    """Raises AssertionError when the wheel is not what it should be."""
    sys.path.insert(0, site)
    # The editable install answers through import hooks of its own.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__.lower()]

    import torch

    import mgran_fast
    from mgran_fast import _C, diagnosis, ops
    from mgran_fast.ops import backend

    home = pathlib.Path(mgran_fast.__file__).parent
    assert home.is_relative_to(pathlib.Path(site).resolve()), f"imported {home}, not the wheel"
    wanted = cuda == "AUTO" and shutil.which("nvcc") is not None
    assert (_C.cuda is not None) == wanted, f"MGRAN_CUDA={cuda} gave CUDA {_C.cuda}"
    assert _C.version == mgran_fast.__version__, f"{_C.version} is not {mgran_fast.__version__}"
    for name in (
        "py.typed",
        "report/base.html.j2",
        "report/lines.html.j2",
        "report/parts.html.j2",
        "report/run.html.j2",
        "report/search.html.j2",
        "report/report.css",
        "kernels/pooling.json",
        "kernels/pointwise.json",
        "mra/regionnet.safetensors",
        "reproduce/configs/market1501.yaml",
    ):
        assert (home / name).is_file(), f"the wheel lacks {name}"
    map_ = ops.regions(torch.ones(1, 8, 4), torch.zeros(1, 17, 3), (24, 12))
    assert map_[0, :, 0].tolist() == [1] * 4 + [2] * 8 + [3] * 12
    for op, devices in diagnosis.OPS.items():
        assert "cpu" not in devices or diagnosis.why_not_native(op, "cpu") == "", diagnosis.why_not_native(op, "cpu")
        if "cuda" not in devices:
            continue
        missing = diagnosis.why_not_native(op, "cuda")
        there = wanted or op in backend.TRITON
        assert (missing == "") == there or "Triton" in missing, f"{op} on cuda: {missing or 'there'}"
    # Out of the box: crops and nothing else.
    model = mgran_fast.MGRAN(trunk="resnet18", size=(64, 32)).eval()
    with torch.no_grad():
        embeddings = model(torch.zeros(2, 64, 32, 3, dtype=torch.uint8))
    assert embeddings.shape == (2, model.dim)
    sys.stdout.write(f"wheel with MGRAN_CUDA={cuda}: CUDA {_C.cuda}, every op native on the CPU, right\n")


main(*sys.argv[1:])
