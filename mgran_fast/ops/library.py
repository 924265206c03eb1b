"""The one torch.library namespace of all ops, ``torch.ops.mgran_fast``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Kept for the life of the process: the ops go when the object does.
LIBRARY = torch.library.Library("mgran_fast", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define the op of this schema, the same implementation for CPU and CUDA tensors, and its fake.

    A fake says the shape, dtype, device and strides of the result without computing it: what torch.compile and
    torch.export need. Returns the op, ready to be called.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, implementation, device)
    torch.library.register_fake(f"mgran_fast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.mgran_fast, name).default
