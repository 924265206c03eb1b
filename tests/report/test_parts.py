"""What explains a match adds up to its distance, and the pages tell it to eyes and ears."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast import layouts
from mgran_fast.data import DataSet, MaskFiles
from mgran_fast.data.synthetic import write as draw
from mgran_fast.ma import concatenate
from mgran_fast.metrics import distances
from mgran_fast.metrics.evaluation import Evaluation, evaluate
from mgran_fast.metrics.protocols import Rule
from mgran_fast.model import MGRAN
from mgran_fast.report import Comparison, Match, Part, Query, RankedList, Report, collect, page, search
from mgran_fast.report.parts import WHOLE, compare, of_evaluation, of_search
from mgran_fast.report.search import FoundList, SearchPage, Shown
from mgran_fast.search.gallery import Gallery

REGION = layouts.get("region")
Pages = Callable[..., list[Any]]
NAMES = (WHOLE, "head", "upper body", "lower body")


def people(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings float32 [N, 4 * 16] as a model makes them, and visible bool [N, 4]: each region is often hidden."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(count, 4, generator=generator) > 0.4
    visible[:, 0] = True
    return concatenate(torch.randn(count, 4, 16, generator=generator), visible), visible


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("visible", [False, True])
def test_parts_add_up_to_the_distance(metric: str, visible: bool) -> None:
    vectors, seen = people(40)
    vectors *= torch.linspace(0.5, 2, 40)[:, None]  # as the mean of several pictures, of any length
    if visible:
        wanted = distances.visible(vectors[:1], vectors[1:], seen[:1], seen[1:], metric=metric)[0]
    else:
        wanted = getattr(distances, metric)(vectors[:1], vectors[1:])[0]
    for k, found in enumerate(
        compare(vectors[0], vectors[1:], seen[0], seen[1:], REGION, metric=metric, visible=visible)
    ):
        assert found is not None
        assert found.distance == pytest.approx(float(wanted[k]), abs=1e-5)
        assert tuple(part.name for part in found.parts) == NAMES
        assert sum(part.share or 0 for part in found.parts) == pytest.approx(1)
        for p, part in enumerate(found.parts):
            mine, theirs = bool(seen[0, p]), bool(seen[k + 1, p])
            assert (part.in_query, part.in_match) == (mine, theirs)
            assert (part.distance is not None) == (mine and theirs)
            counts = (mine and theirs) if visible else (mine or theirs)
            assert (part.share is not None) == counts
            if part.distance is not None:
                # A part alone is an embedding of one part, by the same metric.
                a, b = (side.view(4, 16)[p : p + 1] for side in (vectors[0], vectors[k + 1]))
                a, b = (torch.nn.functional.normalize(side, dim=1) for side in (a, b))
                alone = float(getattr(distances, metric)(a, b))
                assert part.distance == pytest.approx(
                    alone**2 if visible and metric == "euclidean" else alone, abs=1e-5
                )


def test_what_a_share_is() -> None:
    """By hand: unit parts along two axes, the lower body hidden in the match."""
    a = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]])
    b = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 0]])
    seen, shown = torch.tensor([True] * 4), torch.tensor([[True, True, True, False]])
    ours, theirs = concatenate(a[None], seen[None])[0], concatenate(b[None], shown)
    (found,) = compare(ours, theirs, seen, shown, REGION)
    assert found is not None
    # Lengths 1/2 and 1/sqrt(3): of 2 - 2 / sqrt(12), the head adds 1/4 + 1/3, the lower body its own 1/4.
    whole = 2 - 4 / 12**0.5
    assert found.distance == pytest.approx(whole**0.5)
    same = (0.5 - 3**-0.5) ** 2
    assert [part.share for part in found.parts] == pytest.approx([x / whole for x in (same, 7 / 12, same, 0.25)])
    assert [part.distance for part in found.parts] == [0, pytest.approx(2**0.5), 0, None]
    (common,) = compare(ours, theirs, seen, shown, REGION, metric="cosine", visible=True)
    assert common is not None
    assert common.distance == pytest.approx(1 / 3)
    assert [part.share for part in common.parts] == [0, 1, 0, None]


def test_nothing_apart_nothing_common_and_nothing_at_all() -> None:
    vectors, seen = people(2)
    nearly = vectors[:1] + 1e-7
    for metric in ("euclidean", "cosine"):
        for visible in (False, True):
            (found,) = compare(vectors[0], nearly, seen[0], seen[:1], REGION, metric=metric, visible=visible)
            assert found is not None
            assert found.distance == pytest.approx(0, abs=1e-5)
            assert all(part.share is None for part in found.parts), "rounding has no shares"
    never = torch.zeros(1, 4, dtype=torch.bool)
    for metric in ("euclidean", "cosine"):
        wanted = distances.visible(vectors[:1], vectors[1:], seen[:1], never, metric=metric)
        (found,) = compare(vectors[0], vectors[1:], seen[0], never[:1], REGION, metric=metric, visible=True)
        assert found is not None
        assert found.distance == float(wanted)
        assert all(part.share is part.distance is None for part in found.parts)
    black = torch.zeros(1, 64)
    (found,) = compare(vectors[0], black, seen[0], seen[:1], REGION, metric="cosine")
    assert found is not None
    assert found.distance == pytest.approx(float(distances.cosine(vectors[:1], black))) == pytest.approx(1)
    whole = torch.ones(2, 1, dtype=torch.bool)
    assert compare(vectors[0], vectors, whole[0], whole, layouts.get("none")) == [None, None]
    with pytest.raises(ValueError, match=r"layout 'part' has 7 parts; .* take the layout of the model"):
        compare(vectors[0], vectors, seen[0], seen, layouts.get("part"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return draw(tmp_path_factory.mktemp("tiny") / "data", people=(0, 4), cameras=2, views=2, size=(32, 16))


@pytest.fixture(scope="module")
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(size=(32, 16), trunk="resnet18").eval()


def hidden(evaluation: Evaluation) -> Evaluation:
    """The same without the heads of the queries."""
    visible = evaluation.query.visible.clone()
    visible[:, 1] = False
    parts = evaluation.query.vectors.view(*visible.shape, -1)
    query = dataclasses.replace(evaluation.query, vectors=concatenate(parts, visible), visible=visible)
    return dataclasses.replace(evaluation, query=query)


@pytest.mark.parametrize("rule", [Rule(), Rule(metric="cosine"), Rule(visible=True)], ids=["whole", "cosine", "common"])
def test_every_list_is_explained(model: MGRAN, tiny: DataSet, rule: Rule) -> None:
    masks = MaskFiles(tiny.root)
    found = hidden(evaluate(model, tiny.query, tiny.gallery, masks, rule))
    pictures = collect.Pictures(model, masks)
    lists = [
        *collect.ranked_lists(pictures, tiny, found, queries=3, k=4),
        *collect.mistakes(pictures, tiny, found, queries=3, k=1),
    ]
    matches = [match for one in lists for match in one.matches]
    assert len(matches) > 12
    for match in matches:
        assert match.parts is not None
        assert match.parts.distance == pytest.approx(match.distance, abs=2e-4), "the match's own"
        head = match.parts.parts[1]
        assert not head.in_query
        assert head.distance is None


def test_a_reranked_match_is_explained_by_the_distance_before(model: MGRAN, tiny: DataSet) -> None:
    found = evaluate(model, tiny.query, tiny.gallery, MaskFiles(tiny.root), Rule(reranked=True))
    told = of_evaluation(found, 0, 3, model.layout)
    assert told is not None
    assert told.reranked
    before = distances.euclidean(found.query.vectors[:1], found.gallery.vectors[3:4])
    assert told.distance == pytest.approx(float(before), abs=2e-4)


def test_a_search_is_explained(model: MGRAN, tiny: DataSet) -> None:
    whole = evaluate(model, tiny.query, tiny.gallery, MaskFiles(tiny.root))
    for visible in (False, True):
        for known in (None, whole.gallery.visible):
            gallery = Gallery()
            gallery.add(whole.gallery.vectors, [str(i) for i in range(len(whole.gallery))], visible=known)
            asked = None if known is None or not visible else whole.query.visible
            found = gallery.search(whole.query.vectors, 50, visible=asked)
            lists = of_search(gallery, whole.query, found, model.layout, visible=asked is not None)
            for entries, comparisons in zip(found.entries, lists, strict=True):
                assert len(entries) == len(comparisons) == len(gallery)
                for entry, one in zip(entries, comparisons, strict=True):
                    assert (one is None) == (known is None)
                    assert one is None or one.distance == pytest.approx(entry.distance, abs=2e-4)


def told(*hide: str, reranked: bool = False, counts: bool = True) -> Comparison:
    """The head at 0.25 of the distance; who hides it is told, and whether it counts then."""
    far = None if hide else 0.125
    head = Part("head", "query" not in hide, "match" not in hide, far, 0.25 if counts else None)
    return Comparison((Part(WHOLE, True, True, 1.5, 0.75), head), 0.875, reranked)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 32, 3), dtype=np.uint8)


@pytest.fixture
def pages(tmp_path: Path, read: Callable[[str], Any]) -> Callable[..., list[Any]]:
    """Comparisons -> the report of a run and the page of a search, each with these for its matches."""

    def pages(*comparisons: Comparison | None) -> list[Any]:
        matches = [Match(noise(i), 7, 2, 0.5, True, None, None, one) for i, one in enumerate(comparisons)]
        run = Report("t", "d", "p", rankings=[RankedList(Query(noise(9), 7, 1), matches, 1)])
        hits = [Shown(f"{i}<i>.jpg", [], noise(i), None, 0.5, one) for i, one in enumerate(comparisons)]
        found = search.write(
            tmp_path / "s.html", SearchPage("t", "g", "m", [FoundList(Shown("q", [], noise(9)), hits)])
        )
        return [read(page.render(run)), read(found.read_text("utf-8"))]

    return pages


def test_parts_stand_below_their_match(pages: Pages) -> None:
    for html in pages(told(), told()):
        assert html.text.replace("\u00a0", " ").count("whole person 1.500 75 % head 0.125 25 %") == 2
        lists = html.all("ul", class_="parts")
        assert len(lists) == 2
        assert all(one["aria-label"] and one["role"] == "list" for one in lists)
        assert [a["style"] for a in html.all("i")] == ["width:75%", "width:25%"] * 2
        assert html.text.count("Below each match") == 1
        for word in (" hidden in ", "not visible", "striped", "does not count", "re-ranking"):
            assert word not in html.text


@pytest.mark.parametrize(
    ("hide", "words"), [(["match"], "in this picture"), (["query"], "in the query"), (["query", "match"], "in both")]
)
def test_parts_that_are_not_visible_are_told_and_not_counted_up(pages: Pages, hide: list[str], words: str) -> None:
    counts = len(hide) == 1
    for html in pages(told(*hide, counts=counts)):
        assert f"head hidden {words}" in html.text
        assert "0.125" not in html.text
        assert ("striped" in html.text) == counts
        assert ("Without a bar it does not count." in html.text) != counts
        assert len(html.all("i")) == 1 + counts
        assert ("not visible: head" in html.text) == ("query" in hide)


def test_reranking_and_pages_without_parts(pages: Pages) -> None:
    for html in pages(told(reranked=True)):
        assert "before re-ranking 0.875" in html.text
        assert "Re-ranking also asks" in html.text
    for html in pages(None, None):
        assert html.all("ul", class_="parts") == []
        assert "Below each match" not in html.text
        assert len([a for a in html.all("img") if a["alt"].startswith("Rank ")]) == 2


def test_names_of_parts_are_escaped_and_nothing_is_loaded(pages: Pages) -> None:
    odd = Comparison((Part("<script>x</script>", False, True, None, 1.0),), 1.0)
    for html in pages(odd):
        assert html.all("script") == html.all("link") == []
        assert "<script>x</script> hidden in the query" in html.text
        assert "not visible: <script>x</script>" in html.text
        for _, attributes in html.elements:
            assert attributes.get("src", "data:").startswith("data:")
            assert attributes.get("href", "#").startswith("#")
            assert not any(name.startswith("on") for name in attributes)
            assert "http" not in "".join(attributes.get(name, "") for name in ("style", "content", "src", "href"))
        assert all(image["alt"] for image in html.all("img"))


def test_headings_follow_each_other_and_regions_have_names(pages: Pages) -> None:
    for html in pages(told("match"), told()):
        levels = [int(tag[1]) for tag, _ in html.elements if tag in ("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        named = [a for _, a in html.elements if a.get("role") == "region" or "tabindex" in a]
        assert named
        assert all(a.get("aria-label") for a in named)
        ids = [a["id"] for _, a in html.elements if "id" in a]
        assert len(ids) == len(set(ids))


def test_distances_of_other_types_are_taken() -> None:
    vectors, seen = people(3)
    single = compare(vectors[0], vectors[1:], seen[0], seen[1:], REGION)
    double = compare(vectors[0].double(), vectors[1:].double(), seen[0], seen[1:], REGION)
    for one, other in zip(single, double, strict=True):
        assert one is not None
        assert other is not None
        assert np.isclose(one.distance, other.distance, atol=1e-12)
