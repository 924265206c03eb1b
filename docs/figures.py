"""Write the README's table of figures from the records of races in benchmarks/results.

python docs/figures.py            # after a record has changed
python docs/figures.py --check    # exits 1 where the README says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README, RECORDS = ROOT / "README.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- from benchmarks/results, by docs/figures.py -->\n\n", "\n<!-- end -->"
HEAD = ("| measured | | against |", "|---|---|---|")


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        what, against: its first and last cell.
        file: the record.
        rows: how the names of the races begin, each one race.
        threads: of the races.
        peers: the bar, as the record names it by its last contestant: "reached" is the figure.
        form: how it is told: of ``low``, ``high`` (times) and ``ms`` (ours, of the last race).
    """

    what: str
    against: str
    file: str
    rows: tuple[str, ...]
    threads: int
    peers: str
    form: str

    def figure(self) -> str:
        """The middle cell."""
        results = json.loads((RECORDS / self.file).read_text(encoding="utf-8"))["results"]
        races = [_only(results, row, self.threads, self.peers) for row in self.rows]
        times = [reached for _, reached in races]
        return self.form.format(low=min(times), high=max(times), ms=races[-1][0]["milliseconds"]["ours"]["median"])


def _only(results: list[dict[str, Any]], name: str, threads: int, peers: str) -> tuple[dict[str, Any], float]:
    """The race of this name, and how many times longer the peers took."""
    found = [
        (row, bar["reached"])
        for row in results
        if row["name"].startswith(name) and row.get("threads") == threads
        for key, bar in row["wanted"].items()
        if key.endswith(peers)
    ]
    if len(found) != 1:
        raise SystemExit(f"{name}, {threads} threads, against {peers}: {len(found)} races, not 1")
    return found[0]


_REAL = "MA of 8 people, {}, real maps, 44 %"
LINES = (
    Line(
        "embedding, 8 people, region maps given, two cores",
        "the best of torch.compile, ONNX Runtime, OpenVINO, oneDNN in the same precision",
        "engine.json", (_REAL.format("float32"), _REAL.format("bfloat16")), 2, "OpenVINO",
        "**{low:.1f} times** as fast",
    ),
    Line(
        "the same in int8", "the best of ONNX Runtime and OpenVINO in int8",
        "engine.json", (_REAL.format("int8"),), 2, "OpenVINO, rest in bfloat16", "**{low:.1f} times**",
    ),
    Line(
        "the same in int8", "four eager float32 passes, as published",
        "engine.json", (_REAL.format("int8"),), 2, "four eager float32 calls", "**{low:.1f} times**",
    ),
    Line(
        "the same on an H200, bfloat16", "torch.compile with CUDA graphs",
        "h200_engine.json", ("MA of 8 people on NVIDIA H200, bfloat16",), 16, "torch.compile, reduce-overhead",
        "**{low:.1f} times**",
    ),
    Line(
        "a training step, 8 people, one core", "the best of eager and torch.compile in bfloat16",
        "training_real_kept.json", ("training step, real crops",), 1, "torch.compile bf16", "**{low:.2f} times**",
    ),
    Line(
        "ranking 3,368 x 15,913 distances (Market-1501's size), two cores",
        "the fastest of NumPy and torchreid's Cython",
        "ranking.json", ("ranking, 3368 x 15913 distances",), 2, "torchreid, Cython",
        "**{low:.0f} times**, {ms:.0f} ms",
    ),
    Line(
        "64 people of a 1920x1080 frame made ready, one core", "OpenCV, box by box, and normalised",
        "boxmot.json", ("BoxMOT's input, 64 boxes of a 1920x1080 BGR frame, bytes",), 1, "normalised",
        "**{low:.0f} times**, {ms:.1f} ms",
    ),
    Line(
        "JPEG files to Parquet, two cores", "the engine alone, on crops in memory",
        "extract.json", ("extract, float32", "extract, bfloat16", "extract, int8"), 2, "the engine alone",
        "{low:.2f} to {high:.2f} of its speed",
    ),
)  # fmt: skip


def table() -> str:
    """The table, in Markdown."""
    return "".join(
        f"{line}\n" for line in (*HEAD, *(f"| {one.what} | {one.figure()} | {one.against} |" for one in LINES))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}{table()}{END}{after}"
    if wanted == text:
        return 0
    if options.check:
        sys.stderr.write("README.md differs from the records: run python docs/figures.py\n")
        return 1
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
