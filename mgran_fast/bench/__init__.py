"""How fast this machine is with a model: ours and plain code take turns in one run."""

from mgran_fast.bench.paired import Timing, race, ratio
from mgran_fast.bench.suite import Case, cases

__all__ = ["Case", "Timing", "cases", "race", "ratio"]
