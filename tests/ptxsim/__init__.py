"""Runs the PTX of nvcc and Triton on host memory, without a GPU: one numpy lane a thread.

``parse`` a module, put the arrays that kernels may touch into a ``Memory``, and ``launch`` an entry. Wrong
accesses, races on shared memory, divergent barriers and every instruction that is not known raise ``PtxError`` with
the source line; ``Statistics`` counts what moved.
"""

from __future__ import annotations
