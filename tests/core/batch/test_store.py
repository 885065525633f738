"""A store on a folder, and behind an address that is no folder of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from magicapture.batch import Store
from magicapture.errors import StorageError
from magicapture.files import TEMPORARY


@pytest.fixture(params=["{}/results", "memory:/{}/results"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param.format(tmp_path))


def test_what_is_written_is_there_for_others(store: Store) -> None:
    assert store.read("ada/job.json") is None and not store.exists("ada")
    with store.opened("ada", "states") as place:
        (place.near / "states").mkdir(parents=True)
        (place.near / "states" / "1.state").write_bytes(b"old")
        place.send()
        assert store.read("ada/states/1.state") == b"old"
        (place.near / "states" / "1.state").write_bytes(b"newer")
        place.write("job.json", b"{}")
    assert store.read("ada/job.json") == b"{}" and store.read("ada/states/1.state") == b"newer"
    with Store(store.address).opened("ada", "states") as place:
        assert (place.near / "states" / "1.state").read_bytes() == b"newer"
    store.remove("ada/states")
    store.remove("ada/states")
    assert not store.exists("ada/states") and store.exists("ada/job.json")
    with store.opened("") as place:
        (place.near / "index.html").write_text("all")
        place.send()
    assert store.read("index.html") == b"all"


def test_only_what_changed_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, sent = Store(f"memory:/{tmp_path}"), []
    put = store.put
    monkeypatch.setattr(store, "put", lambda file, name: (sent.append(name), put(file, name)))
    with store.opened("ada") as place:
        for name in ("a", "b", f".c{TEMPORARY}"):
            (place.near / name).write_text(name)
        place.send()
        (place.near / "b").write_text("bb")
        place.send()
    assert sent == ["ada/a", "ada/b", "ada/b"]


def test_a_name_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes half of a file: what was there stays, and a later try replaces the rest."""
    store = Store(f"memory:/{tmp_path}")
    file = tmp_path / "file"
    file.write_text("old")
    store.put(file, "ada/file")
    file.write_text("new")

    def half(near: str, far: str) -> None:
        store._fs.pipe_file(far, b"n")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(store._fs, "put_file", half)
        with pytest.raises(StorageError, match="No space left"):
            store.put(file, "ada/file")
    assert store.read("ada/file") == b"old"
    assert [copy.name for copy in store.get("ada", tmp_path / "near")] == ["file"]
    store.put(file, "ada/file")
    assert store.read("ada/file") == b"new"
    assert store._fs.find(store._at("ada")) == [store._at("ada/file")]


def test_an_address_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be reached"):
        Store("nothing-known://bucket/run")
