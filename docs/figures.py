"""Write what the README says of speed and accuracy from the records in benchmarks/results, and draw their plots.

python docs/figures.py            # after a record has changed
python docs/figures.py --check    # exits 1 where the README or a plot says something else
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgran_fast.bench import plots, record

ROOT = Path(__file__).resolve().parents[1]
README, RECORDS, PLOTS = ROOT / "README.md", ROOT / "benchmarks" / "results", ROOT / "docs" / "pictures" / "benchmarks"
#: What the plots are drawn from: pytest --benchmark.
SUITE = "suite.json"
#: Around each part that is written here, by its name.
BEGIN, END = "<!-- {}: from benchmarks/results, by docs/figures.py -->\n\n", "\n<!-- end -->"
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
        among = [race for race in _results(self.file) if _bars(race, self.peers)]
        races = [record.only(among, row, threads=self.threads) for row in self.rows]
        times = [_reached(race, self.peers) for race in races]
        return self.form.format(low=min(times), high=max(times), ms=_ms(races[-1]))


def _results(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = record.load(RECORDS / file)["results"]
    return found


def _bars(race: dict[str, Any], peers: str) -> list[float]:
    """How many times longer the peers took: the bar that they end, or the one contestant of this name."""
    bars = [bar["reached"] for key, bar in race.get("wanted", {}).items() if key.endswith(peers)]
    return bars or [times for key, times in race.get("ratios", {}).items() if key == peers]


def _reached(race: dict[str, Any], peers: str) -> float:
    found = _bars(race, peers)
    if len(found) != 1:
        raise SystemExit(f"{race['name']} against {peers}: {len(found)} figures, not 1")
    return float(found[0])


def _ms(race: dict[str, Any]) -> float:
    return float(race["milliseconds"]["ours"]["median"])


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


def way() -> str:
    """The whole way, from pictures on disk, in a line."""
    race = record.only(_results(SUITE), "pictures to embeddings", group="pipeline")
    times, people = _reached(race, "as published"), race["at"]["people"]
    return (
        f"From JPEG files to embeddings **{times:.0f} times** as fast as the published system's own way: two stock\n"
        f"detectors at their default size and four eager passes, {people} people at a time, the same two cores.\n"
    )


def words() -> str:
    """What else was measured, in sentences."""
    values = _results("values.json")
    demo, part, best, again = (
        record.only(values, name)["values"]
        for name in ("demo", "ResNet-50 from scratch", "ResNet-18 from scratch", "re-ranking")
    )
    kernels = _results("new_memory.json")
    crops, regions = (
        record.only(kernels, name, threads=1) for name in ("crops,", "regions, 64 people, layout region, masks 256x128")
    )
    kept = _results("kept_memory.json")
    inputs = [_reached(record.only(kept, f"inputs, 64 people, {kind}", threads=1), "copy into one place")
              for kind in ("float32", "bfloat16")]  # fmt: skip
    pooling = [
        _reached(race, "sums")
        for race in kept
        if race["name"].startswith("pooling, forward and backward") and race["threads"] == 1
    ]
    step = record.only(_results("training_real_kept.json"), "training step", threads=1)
    peaks = step["peak MB"]
    gpu = _results("h200_engine.json")
    eager = [race["ratios"]["eager, the four inputs in one batch"] for race in gpu
             if race["name"] == "MA of 8 people on NVIDIA H200, bfloat16"]  # fmt: skip
    return "\n".join((
        f"The demo takes Rank-1 from {demo['Rank-1 untrained, %']} % to {demo['Rank-1, %']} % on synthetic people in"
        f" {demo['minutes']} minutes on two cores, a ResNet-50",
        f"from scratch on a part of CUHK03 reached {part['Rank-1, %']} % in {part['minutes']} minutes (untrained:"
        f" {part['Rank-1 untrained, %']:.0f} %), a ResNet-18 with one",
        f"masked pass {best['Rank-1, %']} % in {best['minutes']}. On one core, a loop of `cv2.resize` takes"
        f" {_reached(crops, 'cv2.resize'):.1f} times as long as `crops`, `regions`",
        f"handles {round(regions['per second'], -3):,.0f} people a second, a copy of the bytes that `inputs` writes"
        f" takes {min(inputs):.1f} to {max(inputs):.1f} times as long as",
        f"`inputs`, and `pooling` with its gradient is {min(pooling):.1f} to {max(pooling):.0f} times as fast as the"
        f" best plain torch. A training step",
        f"takes {peaks['ours'] / peaks['eager bf16']:.2f} of eager bfloat16's memory. Re-ranking at Market-1501's size"
        f" takes {again['s, least of three']:.1f} to {again['s, most of three']:.1f} s on two cores,",
        f"distances given, torchreid's {again['torchreid, s']}. On an H200 eager code in the same precision"
        f" takes {min(eager):.0f} times as long as the engine,",
        "8 people in bfloat16.",
        "",
    ))  # fmt: skip


#: The parts of the README that are written here.
PARTS = {"figures": table, "way": way, "words": words}


def written(text: str) -> str:
    """The README with every part as the records have it."""
    for name, part in PARTS.items():
        begin = BEGIN.format(name)
        before, rest = text.split(begin)
        _, after = rest.split(END, 1)
        text = f"{before}{begin}{part()}{END}{after}"
    return text


def stale() -> list[str]:
    """The plots that were drawn from something else than the record, or are missing."""
    wanted = plots.digest(record.load(RECORDS / SUITE))
    drawn = sorted(PLOTS.glob("*.svg"))
    return [path.name for path in drawn if plots.drawn_from(path) != wanted] or ([] if drawn else [str(PLOTS)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    wanted, old = written(text), stale()
    if options.check:
        said = ["README.md"] if wanted != text else []
        if said + old:
            sys.stderr.write(f"{', '.join(said + old)} differ from the records: run python docs/figures.py\n")
        return int(bool(said + old))
    README.write_text(wanted, encoding="utf-8")
    if old:
        for path in PLOTS.glob("*.svg"):
            path.unlink()
        plots.draw(record.load(RECORDS / SUITE), PLOTS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
