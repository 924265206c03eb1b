"""Tests of an installed wheel, which stand by themselves: copy this folder anywhere and run pytest on it.

``make package`` does that for each wheel, cibuildwheel for those that it builds. In a checkout they are left out: an
editable install is none of what they test.
"""

from __future__ import annotations

from pathlib import Path

import mgran_fast

HOME = Path(mgran_fast.__file__).resolve().parent
if (HOME.parent / "CMakeLists.txt").exists():
    collect_ignore_glob = ["test_*.py"]
