"""mgran-fast search, from pictures to a page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgran_fast import MGRAN, Gallery
from mgran_fast.data import DataSet

pytest.importorskip("pyarrow")

Cli = Callable[..., Any]


@pytest.fixture
def search(cli: Cli, trained: Any, tmp_path: Path) -> Cli:
    return lambda *arguments: cli(
        "search", *arguments, "--checkpoint", trained.folder / "model.safetensors", "--workers", "0", "--json",
        "--output", tmp_path / "page.html",
    )  # fmt: skip


def told(outcome: Any, *words: str) -> None:
    assert (outcome.code, outcome.out) == (1, "")
    line = outcome.err.splitlines()[-1]
    assert line.startswith("mgran-fast: ")
    for word in words:
        assert word in line, line


def test_pictures_then_what_was_saved(search: Cli, tiny: DataSet, trained: Any, tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(tiny.root / "bounding_box_test", tmp_path / "pictures"))
    query, saved = tiny.query[0].path, tmp_path / "gallery"
    first = search(query, pictures, "--save", saved, "--top", "4")
    assert first.code == 0, first.err
    assert first.json["gallery"] == {"pictures": 8, "saved": str(saved)}
    (one,) = first.json["queries"]
    assert (one["name"], len(one["found"])) == (query.name, 4)
    # By hand, from what the model makes of the pictures.
    gallery = Gallery.load(saved)
    model = MGRAN.from_file(trained.folder / "model.safetensors").eval()
    assert gallery.names == tuple(sorted(path.name for path in pictures.glob("*.jpg")))
    assert gallery.embeddings.shape == (8, model.dim)
    found = [hit["name"] for hit in one["found"]]
    distances = [hit["distance"] for hit in one["found"]]
    assert distances == sorted(distances)
    again = search(query, saved, "--top", "8", "--blur-faces")
    assert again.code == 0, again.err
    assert [hit["name"] for hit in again.json["queries"][0]["found"]][:4] == found
    want = {entry.name: entry.camera for entry in gallery.search(torch.zeros(1, model.dim), k=8).entries[0]}
    assert {hit["name"]: hit["camera"] for hit in again.json["queries"][0]["found"]} == want
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<img") == 9
    assert found[0] in page
    assert "Heads are pixelated" in page
    # Filters, and pictures that are gone since.
    camera = one["found"][0]["camera"]
    (pictures / found[1]).unlink()
    less = search(query, saved, "--not-camera", camera, "--top", "8")
    kept = {hit["camera"] for hit in less.json["queries"][0]["found"]}
    assert kept
    assert camera not in kept
    only = search(query, saved, "--camera", camera, "--top", "8", "--visible")
    assert {hit["camera"] for hit in only.json["queries"][0]["found"]} == {camera}
    page = (tmp_path / "page.html").read_text("utf-8")
    assert f"by camera {camera}" in page
    assert page.count("picture not found") == int(
        any(hit["name"] == found[1] for hit in only.json["queries"][0]["found"])
    )
    nothing = search(query, saved, "--since", "2026-01-01")
    assert nothing.json["queries"][0]["found"] == []
    assert "no picture passes the filters" in nothing.err
    assert "The gallery has nothing for this query" in (tmp_path / "page.html").read_text("utf-8")


def test_a_folder_of_queries_and_broken_pictures(search: Cli, copied: Path, tmp_path: Path) -> None:
    gallery = copied / "bounding_box_test"
    broken = sorted(gallery.glob("*.jpg"))[2]
    broken.write_bytes(b"no picture")
    outcome = search(copied / "query", gallery, "-k", "2", "--precision", "float32")
    assert outcome.code == 0, outcome.err
    assert [len(one["found"]) for one in outcome.json["queries"]] == [2] * 8
    assert outcome.json["gallery"]["pictures"] == 7
    assert any(broken.name in line for line in outcome.json["problems"])
    assert broken.name in outcome.err
    assert "Search for 8 pictures" in (tmp_path / "page.html").read_text("utf-8")


def test_what_is_refused(search: Cli, copied: Path, trained: Any, cli: Cli, tmp_path: Path) -> None:
    query = next((copied / "query").glob("*.jpg"))
    told(search(query, copied / "none"), "none: no such file; give a picture")
    told(search(tmp_path / "none.jpg", copied / "query"), "none.jpg: no such file")
    told(search(query, copied / "query", "--since", "noon"), "--since: 'noon' is no time")
    told(search(query, copied / "query", "--precision", "int8"), "--precision int8: takes pictures to calibrate on")
    saved = tmp_path / "gallery"
    assert search(query, copied / "query", "--save", saved).code == 0
    told(search(query, saved, "--save", tmp_path / "other"), "--save and --masks are for pictures")
    other = tmp_path / "other.safetensors"
    MGRAN(size=(32, 16), trunk="resnet18").save(other)
    outcome = cli("search", query, saved, "--checkpoint", other, "--output", tmp_path / "page.html")
    told(outcome, "its embeddings are of run/model.safetensors", "name that --checkpoint")
    assert search(query, copied / "query", "--top", "0").code == 2
