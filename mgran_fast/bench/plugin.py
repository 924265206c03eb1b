"""What makes ``pytest --benchmark`` an option: the side-by-side suite, from any folder of the checkout.

Named in pyproject.toml, so that it is there wherever pytest finds that file, and in no other project. Without
``--benchmark`` everything in benchmarks/ is skipped. Options of pytest-benchmark work beside it: each contestant of a
race is a benchmark of its own there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SUITE = Path("benchmarks") / "test_suite.py"
#: Where tables and plots go, from the checkout's root.
OUTPUT = Path("runs") / "benchmark"


@dataclass
class Board:
    """What was measured so far.

    Attributes:
        rows: results, see :mod:`mgran_fast.bench.record`.
        ceilings: the machine's, if they were measured.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)


BOARD = pytest.StashKey[Board]()


def pytest_addoption(parser: pytest.Parser) -> None:
    # All of them here: what a conftest adds is not known yet when pytest tells options' values from names of files.
    group = parser.getgroup("mgran_fast", "mgran_fast, side by side")
    say = group.addoption
    say("--benchmark", action="store_true", dest="mgran_benchmark",
        help="run the side-by-side suite, or the files of benchmarks/ that are named")  # fmt: skip
    say("--benchmark-quick", action="store_true", dest="mgran_quick",
        help="a first look, within three minutes: less of everything, no compilers")  # fmt: skip
    say("--benchmark-output", metavar="FOLDER", dest="mgran_output",
        help=f"where the record, its tables and plots go; default: {OUTPUT} of the checkout")  # fmt: skip
    say("--seconds", type=float, help="how long each race goes on (default: the suite's 1.5, quickly 0.4; else 4)")
    say("--record", metavar="FILE", help="write the record to this file as well")
    say("--memory", choices=["new", "kept"], default="new", help="what results are written to, in benchmarks that tell")
    say("--compile-mode", default="max-autotune", help="of torch.compile on a GPU, in its engine's; none leaves it out")


def wanted(config: pytest.Config) -> bool:
    """Whether benchmarks run."""
    return bool(config.getoption("mgran_benchmark") or config.getoption("mgran_quick"))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """The suite, where no file is named: before pytest looks for the conftest of what it is going to run."""
    known = early_config.known_args_namespace
    if (known.mgran_benchmark or known.mgran_quick) and not known.file_or_dir:
        suite = str(early_config.rootpath / SUITE)
        known.file_or_dir = [suite]
        args.append(suite)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOARD] = Board()
    if not wanted(config):
        return
    if getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None):
        raise pytest.UsageError("--benchmark: races run one at a time; leave -n out")
    # Its own table would say once more what ours says; whoever asks for one of its options gets it.
    own = {"--benchmark", "--benchmark-quick", "--benchmark-output"}
    asked = {word.partition("=")[0] for word in config.invocation_params.args if word.startswith("--benchmark")}
    if asked <= own and hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    board = config.stash[BOARD]
    if not board.rows:
        return
    from mgran_fast.bench import record, report

    terminalreporter.section("side by side: medians, and how many times longer the others take")
    made = record.record(board.rows, board.ceilings)
    given = config.getoption("mgran_output")
    folder = Path(given) if given else config.rootpath / OUTPUT
    for line in report.write(made, folder):
        terminalreporter.write_line(line)
    if config.getoption("--record"):
        record.save(Path(config.getoption("--record")), made)
