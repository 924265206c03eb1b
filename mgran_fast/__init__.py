"""mgran_fast: MGRAN person re-identification with custom kernels.

    import mgran_fast

    model = mgran_fast.MGRAN(layout="region").eval()
    embeddings = model(crops)   # uint8 [N, H, W, 3] -> float32 [N, 4 * 2048]; masks from the RegionNet in the wheel

Names are loaded when first used, so that ``import mgran_fast`` is quick and needs no extension, GPU or driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgran_fast import layouts, ops, reference
    from mgran_fast.diagnosis import doctor
    from mgran_fast.engine.calibration import Calibration
    from mgran_fast.engine.engine import Engine
    from mgran_fast.engine.export import export
    from mgran_fast.engine.optimize import calibrate, optimize
    from mgran_fast.errors import CheckpointError, DataError, MGRANError
    from mgran_fast.extractor import FeatureExtractor
    from mgran_fast.metrics.ranking import rank
    from mgran_fast.metrics.rerank import rerank
    from mgran_fast.model import MGRAN
    from mgran_fast.mra.maskrcnn import MaskRCNN
    from mgran_fast.mra.regionnet import RegionNet
    from mgran_fast.search.gallery import Gallery

__version__ = "0.1.0"

__all__ = [
    "MGRAN",
    "Calibration",
    "CheckpointError",
    "DataError",
    "Engine",
    "FeatureExtractor",
    "Gallery",
    "MGRANError",
    "MaskRCNN",
    "RegionNet",
    "__version__",
    "calibrate",
    "doctor",
    "export",
    "layouts",
    "ops",
    "optimize",
    "rank",
    "reference",
    "rerank",
]

_HOMES = {
    "MGRAN": "mgran_fast.model",
    "Calibration": "mgran_fast.engine.calibration",
    "Engine": "mgran_fast.engine.engine",
    "FeatureExtractor": "mgran_fast.extractor",
    "Gallery": "mgran_fast.search.gallery",
    "calibrate": "mgran_fast.engine.optimize",
    "optimize": "mgran_fast.engine.optimize",
    "CheckpointError": "mgran_fast.errors",
    "DataError": "mgran_fast.errors",
    "MGRANError": "mgran_fast.errors",
    "MaskRCNN": "mgran_fast.mra.maskrcnn",
    "RegionNet": "mgran_fast.mra.regionnet",
    "doctor": "mgran_fast.diagnosis",
    "export": "mgran_fast.engine.export",
    "rank": "mgran_fast.metrics.ranking",
    "rerank": "mgran_fast.metrics.rerank",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value: Any = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in ("layouts", "ops", "reference"):
        value = importlib.import_module(f"mgran_fast.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
