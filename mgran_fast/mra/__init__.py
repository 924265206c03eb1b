"""Mask-guided Region Attention: estimators of masks and keypoints.

An estimator is anything that answers crops with an :class:`~mgran_fast.mra.estimate.Estimate`; see
:class:`~mgran_fast.mra.estimate.Estimator`. :class:`mgran_fast.RegionNet`, the default, and
:class:`mgran_fast.MaskRCNN` are two. Masks and keypoints that lie on disk come through
:class:`mgran_fast.data.MaskFiles`.
"""

from __future__ import annotations

from mgran_fast.mra.estimate import Estimate, Estimator

__all__ = ["Estimate", "Estimator"]
