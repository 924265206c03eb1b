"""kill -9 at random moments; ``kill.py`` does more of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("kill.py")


def test_a_killed_run_ends_in_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "2"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("killed run") for line in lines) == 2
    assert lines[-1].endswith("ended in the same bytes")
