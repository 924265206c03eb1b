"""Turns recorded races into a Markdown table: ``python benchmarks/table.py FILE...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(record: dict[str, Any]) -> list[str]:
    """One line a race: our median, and for each bar the best peer's ratio to it; no line for other figures."""
    lines = ["| race | threads | ours, ms | peer | takes | wanted |", "|---|---|---|---|---|---|"]
    for row in record["results"]:
        if "milliseconds" not in row:
            continue  # no race: what is told of memory stands apart
        ours = row["milliseconds"]["ours"]["median"]
        bars = row["wanted"] or {peer: {"bar": None, "reached": times} for peer, times in row["ratios"].items()}
        for number, (peers, bar) in enumerate(bars.items()):
            best = min(peers.split("|"), key=lambda peer: row["milliseconds"][peer]["median"])
            wanted = "" if bar["bar"] is None else f"{bar['bar']:.2f}x"
            if bar["bar"] is not None and bar["reached"] < bar["bar"]:
                wanted += ", **not reached**"
            head = f"{row['name']} | {row['threads']} | {ours:.2f}" if number == 0 else " | | "
            lines.append(f"| {head} | {best} | {bar['reached']:.2f}x as long | {wanted} |")
    return lines


def main() -> int:
    for name in sys.argv[1:]:
        record = json.loads(Path(name).read_text())
        if "results" not in record:
            continue  # of another kind: the table of the GPU kernels
        about = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
        sys.stdout.write("\n".join([f"{Path(name).name}: {about}", "", *table(record), "", ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
