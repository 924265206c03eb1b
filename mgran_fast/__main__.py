"""``python -m mgran_fast`` is the command ``mgran-fast``."""

from __future__ import annotations

from mgran_fast.cli import main

if __name__ == "__main__":
    main()
