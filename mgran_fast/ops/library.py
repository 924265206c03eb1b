"""The one torch.library namespace of all ops, ``torch.ops.mgran_fast``."""

from __future__ import annotations

import torch

# Kept for the life of the process: the ops go when the object does.
LIBRARY = torch.library.Library("mgran_fast", "DEF")
