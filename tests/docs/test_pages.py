"""Pages that are followed step by step: their commands and their Python, in order, in a folder of drawn people."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mgran_fast
from mgran_fast import MGRAN
from mgran_fast.metrics import euclidean, rank

#: Pages that are followed, each in a folder of its own. Of all others commands are parsed, and Python is compiled.
FOLLOWED = (
    "README.md",
    "docs/guides/train-on-your-data.md",
    "docs/guides/deploy.md",
    "docs/guides/cluster.md",
    "docs/guides/write-a-kernel.md",
    "docs/datasets.md",
    "docs/evaluation.md",
    "docs/search.md",
    "docs/regionnet.md",
    "docs/responsible-use.md",
    "docs/model-cards.md",
)
#: Lines on these pages that are parsed alone, and why.
NOT_RUN = {
    r"torchrun|srun|NODE_RANK|--devices": "starts several processes: tests/train/test_machines.py",
    r"mgran-fast (ablate|reproduce \S)": "trains several times: tests/cli/test_reproduce.py",
    r"mgran-fast demo": "takes minutes: make demo",
    r"mgran-fast train-mra": "another training: tests/cli/test_train_mra.py",
    r"--since": "searches by time, which drawn pictures do not tell: tests/cli/test_search.py",
    r"--ray ADDRESS": "wants a Ray cluster",
}
#: What takes 5 s each time runs on this page alone.
EXPORTED = "docs/guides/deploy.md"
#: Command -> what the tests add to a line, so that it takes seconds; the last value of an option counts.
ADDED: dict[str, tuple[str, ...]] = {
    "evaluate": ("--workers", "0", "--counts", "any"),
    "masks": ("--workers", "0", "--counts", "any", "--size", "32x16"),
    "search": ("--workers", "0"),
    "extract": ("--processes", "1"),
    "datasets check": ("--counts", "any"),
}


def prepared() -> dict[str, Any]:
    """The names that the pages' Python takes as given: two pictures, and what a model made of others."""
    make = torch.Generator().manual_seed(0)
    people, queries, gallery, dim = 2, 6, 40, 2048
    crops = torch.randint(0, 256, (people, 64, 32, 3), dtype=torch.uint8, generator=make)
    keypoints = torch.rand(people, 17, 3, generator=make) * torch.tensor([32.0, 64.0, 1.0])
    vectors = {
        n: torch.nn.functional.normalize(torch.randn(n, dim, generator=make)) for n in (people, queries, gallery)
    }
    labels: dict[str, Any] = {
        "query_ids": torch.arange(queries) % 3,
        "gallery_ids": torch.arange(gallery) % 4,
        "query_cameras": torch.zeros(queries, dtype=torch.int64),
        "gallery_cameras": torch.arange(gallery) % 3,
    }
    return {
        **labels,
        "mgran_fast": mgran_fast,
        "torch": torch,
        "crops": crops,
        "some_crops": crops,
        "masks": torch.rand(people, 64, 32, generator=make),
        "keypoints": keypoints,
        "frame": torch.randint(0, 256, (120, 160, 3), dtype=torch.uint8, generator=make),
        "boxes": torch.tensor([[10.0, 10, 40, 90], [60, 5, 100, 110]]),
        "features": torch.rand(people, 8, 16, 8, generator=make),
        "region": torch.tensor([0, 1]),
        "embeddings": vectors[people],
        "names": ["old.jpg", "new.jpg"],
        "persons": ["alice", "bob"],
        "cameras": ["gate", "yard"],
        "times": ["2026-11-27T09:00", "2026-11-27T10:00"],
        "query": vectors[queries],
        "gallery": vectors[gallery],
        "distances": euclidean(vectors[queries], vectors[gallery]),
        "baseline": rank(vectors[queries].flip(1), vectors[gallery], **labels),
    }


class Given(ast.NodeTransformer):
    """``name=...`` takes the prepared value of that name."""

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        if node.arg and isinstance(node.value, ast.Constant) and node.value.value is ...:
            node.value = ast.copy_location(ast.Name(node.arg, ast.Load()), node.value)
        return node


def execute(text: str, where: str, namespace: dict[str, Any]) -> None:
    """Run a page's Python as a reader would type it."""
    tree = ast.fix_missing_locations(Given().visit(ast.parse(text, where)))
    exec(compile(tree, where, "exec"), namespace)


@pytest.mark.parametrize("chapter", FOLLOWED)
def test_page(
    chapter: str,
    world: Path,
    run: Callable[..., str],
    small: tuple[str, ...],
    lines: Callable[[str], list[Any]],
    snippets: Callable[[str], list[Any]],
) -> None:
    """What a page tells to type works, one thing after the other."""
    added = {**ADDED, "train": (*small, "--counts", "any")}
    namespace = prepared()
    for step in sorted([*lines(chapter), *snippets(chapter)], key=lambda one: int(one.line)):
        if hasattr(step, "language"):
            execute(step.text, str(step), namespace)
            continue
        words = step.ours
        if words is None or any(re.search(pattern, step.text) for pattern in NOT_RUN):
            continue
        if words[0] == "export" and chapter != EXPORTED:
            continue
        # What cannot be there under its name.
        words = [re.sub(r"^/shared/", "shared/", "runs/mine/model.safetensors" if w == "..." else w) for w in words]
        target = world / words[-1] if ">" in words else None
        if target is not None:
            words = words[: words.index(">")]
        more = next((extra for name, extra in added.items() if words[: len(name.split())] == name.split()), ())
        out = run(*words, *more)
        if target is not None:
            target.write_text(out, "utf-8")


def test_python_compiles(block: Any) -> None:
    """All Python of all pages is Python."""
    if block.language == "python":
        compile(block.text, str(block), "exec")


def test_exceptions_are_needed(lines: Callable[[str], list[Any]]) -> None:
    """Each stated exception still stands for a line."""
    texts = [one.text for page in FOLLOWED for one in lines(page)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, text) for text in texts), pattern


def test_prepared_sizes_fit() -> None:
    """The prepared embeddings are of the length that the trained model of the tests gives."""
    given = prepared()
    assert given["embeddings"].shape[1] == MGRAN(trunk="resnet18", size=(32, 16)).dim
