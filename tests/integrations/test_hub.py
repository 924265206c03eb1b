"""from_pretrained, save_pretrained, push_to_hub: folders, a prepared download cache, and recorded calls of the hub."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mgran_fast import MGRAN, CheckpointError, MGRANError
from mgran_fast.weights.checkpoint import describe

NAME, COMMIT = "somebody/mgran-market", "0123456789abcdef0123456789abcdef01234567"
NOTES = {"dataset": "synthetic", "epochs": "5", "Rank-1": "87.5 %", "odd | key\n": "one\n| two"}


def same(found: MGRAN, want: MGRAN) -> None:
    assert found.config == want.config
    assert not found.training
    for (key, value), other in zip(found.ma.state_dict().items(), want.ma.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real package, told that there is no network."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return hub


@pytest.fixture
def cache(model: MGRAN, tmp_path: Path) -> Path:
    """What a download leaves in the hub's cache."""
    place = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}"
    model.save_pretrained(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


def test_a_folder_needs_no_package(model: MGRAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model.save_pretrained(tmp_path / "mine", notes=NOTES, license="cc-by-nc-4.0")
    assert sorted(os.listdir(tmp_path / "mine")) == ["README.md", "model.safetensors"]
    same(MGRAN.from_pretrained(tmp_path / "mine"), model)
    same(MGRAN.from_pretrained(str(tmp_path / "mine")), model)
    same(MGRAN.from_file(tmp_path / "mine" / "model.safetensors"), model)
    assert describe(tmp_path / "mine" / "model.safetensors")[1] == NOTES

    def estimator(crops: torch.Tensor) -> Any:
        raise AssertionError

    assert MGRAN.from_pretrained(tmp_path / "mine", mra=estimator).mra is estimator
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        MGRAN.from_pretrained(tmp_path)
    for name in (tmp_path / "none", "none", "./a/b", "../b", "a/b/c", "a b/c"):
        with pytest.raises(CheckpointError, match="neither a folder nor the name of a model"):
            MGRAN.from_pretrained(name)
    with pytest.raises(MGRANError, match=r"pip install 'mgran_fast\[hub\]'"):
        MGRAN.from_pretrained(NAME)
    with pytest.raises(MGRANError, match=r"pip install 'mgran_fast\[hub\]'"):
        model.push_to_hub(NAME)


def test_the_card(model: MGRAN, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    model.save_pretrained(tmp_path, notes=NOTES, license="cc-by-nc-4.0")
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "mgran_fast"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert {"person-re-identification", "mgran"} <= set(card.data.tags)
    # The numbers are the model's.
    assert "| body layout | region: " in card.text
    assert f"| embedding | {model.dim} numbers: 4 x 512 |" in card.text
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in card.text
    assert "64x32 pixels" in card.text
    for line in ("| Rank-1 | 87.5 % |", r"| odd \| key | one \| two |"):
        assert line in card.text.splitlines()
    assert "No figures came" not in card.text
    for word in ("surveillance", "consent", "forbidden", "no proof of identity"):
        assert word in card.text
    # What the card says of loading works.
    code = card.text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path))
    names: dict[str, Any] = {}
    exec(code.partition("extractor =")[0], names)
    same(names["model"], model)

    # A card that somebody has edited stays; the weights are new.
    (tmp_path / "README.md").write_text("edited")
    model.save_pretrained(tmp_path, notes={"epochs": "6"})
    assert (tmp_path / "README.md").read_text() == "edited"
    assert describe(tmp_path / "model.safetensors")[1] == {"epochs": "6"}
    model.save_pretrained(tmp_path / "bare")
    bare = hub.ModelCard.load(tmp_path / "bare" / "README.md")
    assert bare.data.license == "unknown"
    assert "No figures came" in bare.text
    with pytest.raises(ValueError, match="license must be an identifier"):
        model.save_pretrained(tmp_path / "other", license="mit\ntags: [x]")
    assert not (tmp_path / "other").exists()


def test_a_name_on_the_hub(offline: Any, cache: Path, model: MGRAN) -> None:
    same(MGRAN.from_pretrained(NAME, cache_dir=cache), model)
    same(MGRAN.from_pretrained(NAME, revision="main", cache_dir=str(cache)), model)
    same(MGRAN.from_pretrained(NAME, revision=COMMIT, token=False, cache_dir=cache), model)
    for name, revision in (("somebody/else", None), (NAME, "v2")):
        with pytest.raises(CheckpointError, match=rf"{name}: no folder, and not to be had from the hub: "):
            MGRAN.from_pretrained(name, revision=revision, cache_dir=cache)


def test_a_foreign_file_is_not_run(offline: Any, cache: Path) -> None:
    (weights,) = cache.rglob("model.safetensors")
    weights.write_bytes(b"\x80\x04\x95")  # how a pickle begins
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        MGRAN.from_pretrained(NAME, cache_dir=cache)


class Api:
    """Stands in for HfApi: writes down what it is asked, and keeps what is uploaded."""

    def __init__(self, kept: Path, cards: bool = False, error: Exception | None = None) -> None:
        self.kept, self.cards, self.error = kept, cards, error
        self.calls: list[tuple[str, Any]] = []

    def __call__(self, **options: Any) -> Api:
        self.calls.append(("HfApi", options))
        return self

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"name": name, **options}))
        if self.error is not None:
            raise self.error

    def create_branch(self, name: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"name": name, **options}))

    def file_exists(self, name: str, file: str, *, revision: str | None) -> bool:
        self.calls.append(("file_exists", (name, file, revision)))
        return self.cards

    def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
        self.calls.append(("upload_folder", options))
        shutil.copytree(folder_path, self.kept)

        class Info:
            commit_url = f"commit/{COMMIT}"

        return Info()


@pytest.fixture
def hub() -> Any:
    return pytest.importorskip("huggingface_hub")


def test_the_calls_are_the_hubs(hub: Any) -> None:
    import inspect

    for name, wanted in {
        "__init__": {"token", "library_name"},
        "create_repo": {"repo_id", "private", "exist_ok"},
        "create_branch": {"repo_id", "branch", "exist_ok"},
        "file_exists": {"repo_id", "filename", "revision"},
        "upload_folder": {"repo_id", "folder_path", "revision", "commit_message"},
    }.items():
        assert wanted <= inspect.signature(getattr(hub.HfApi, name)).parameters.keys(), name
    assert {"revision", "token", "cache_dir", "library_name"} <= inspect.signature(
        hub.hf_hub_download
    ).parameters.keys()


def test_push(hub: Any, model: MGRAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(tmp_path / "up")
    monkeypatch.setattr(hub, "HfApi", api)
    assert model.push_to_hub(NAME, notes=NOTES, license="other", private=True, token="t") == f"commit/{COMMIT}"
    assert api.calls == [
        ("HfApi", {"token": "t", "library_name": "mgran_fast"}),
        ("create_repo", {"name": NAME, "private": True, "exist_ok": True}),
        ("file_exists", (NAME, "README.md", None)),
        ("upload_folder", {"repo_id": NAME, "revision": None, "commit_message": "Upload MGRAN"}),
    ]
    same(MGRAN.from_pretrained(tmp_path / "up"), model)
    card = hub.ModelCard.load(tmp_path / "up" / "README.md")
    assert card.data.license == "other"
    assert "# mgran-market" in card.text
    assert f'from_pretrained("{NAME}")' in card.text
    assert "| Rank-1 | 87.5 % |" in card.text


def test_push_to_a_branch_with_a_card(hub: Any, model: MGRAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(tmp_path / "up", cards=True)
    monkeypatch.setattr(hub, "HfApi", api)
    model.push_to_hub(NAME, revision="small", message="Smaller")
    assert ("create_branch", {"name": NAME, "branch": "small", "exist_ok": True}) in api.calls
    assert api.calls[-1] == ("upload_folder", {"repo_id": NAME, "revision": "small", "commit_message": "Smaller"})
    assert os.listdir(tmp_path / "up") == ["model.safetensors"]


def test_without_a_network(hub: Any, model: MGRAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in hub.errors.HfHubHTTPError.__bases__:
        monkeypatch.setattr(hub, "HfApi", Api(tmp_path / "up", error=kind("no route")))
        with pytest.raises(MGRANError, match="not uploaded: no route"):
            model.push_to_hub(NAME)
    with pytest.raises(MGRANError, match="mine: the name of a model on the hub is owner/name"):
        model.push_to_hub("mine")


def test_push_without_a_login(hub: Any, model: MGRAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = hub.errors.LocalTokenNotFoundError("Token is required\nbut none was found")
    monkeypatch.setattr(hub, "HfApi", Api(tmp_path / "up", error=error))
    with pytest.raises(MGRANError, match="not uploaded: Token is required but none was found; log in with"):
        model.push_to_hub(NAME)
    with pytest.raises(ValueError, match="license must be an identifier"):
        model.push_to_hub(NAME, license="My Own")
