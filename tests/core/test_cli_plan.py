"""`magicapture plan`, and what `train` and a job of a batch make of a plan, from end to end."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from magicapture.adapters import load_adapter
from magicapture.batch import Worker, read_jobs
from magicapture.cli import main
from magicapture.cli.batch_jobs import JobReader, TrainLoader
from magicapture.data.writing import save_photo_set
from magicapture.paperdoll.pairs import make_pair, references
from magicapture.planning import GB
from magicapture.planning.plan import NEARLY

SETTINGS = {
    "recipe": "textual-inversion",  # the cheapest to rehearse
    "resolution": 128,
    "steps": 2,
    "face_model": "none",
    "save_memory": True,
    "set": ["variants=1"],
}


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, str]:
    pair = make_pair(1_000_000, 1_000_099, photos=5, poses=1)  # as many as a plan expects
    for dolls, name in ((pair.source, "person"), (pair.reference, "style")):
        drawn = references(dolls)
        names = [f"{i}.png" for i in range(len(drawn))]
        save_photo_set(drawn.known("names", names), tmp_path / name)
    return {"source": str(tmp_path / "person"), "style": str(tmp_path / "style")}


def words(command: str, **settings: object) -> list[str]:
    found = [command]
    for name, value in {**SETTINGS, **settings}.items():
        flag = f"--{name.replace('_', '-')}"
        found += [flag] if value is True else [f"{flag}={v}" for v in _listed(value)]
    return found


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def test_a_plan_is_what_train_and_a_job_do(
    small_base: Path, photos: dict[str, str], tmp_path: Path, capsys, caplog, monkeypatch
) -> None:
    caplog.set_level(logging.INFO)
    # What this process holds changes from call to call by more than the tiny settings differ.
    monkeypatch.setattr("magicapture.planning.plan.program_bytes", lambda *_: GB // 2)
    file = tmp_path / "plan.json"
    assert main(words("plan", base=small_base, fit=1000, json=file)) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "Stable Diffusion 1.x, 128 px, textual-inversion, 2 steps\nTraining needs"
    )
    assert "The first that fits in 1000.0 GB: as asked." in told
    rows = {row["setting"]: row for row in json.loads(file.read_text())["rows"]}
    assert [*rows] == ["as asked", "and 96 px", "bf16", "fp8 base model"]
    assert rows["and 96 px"]["options"] == "--save-memory --resolution 96"
    need, less = rows["as asked"]["bytes"], rows["and 96 px"]["bytes"]
    space = (need + less) / 2 / NEARLY / GB

    trained = words("train", base=small_base, **photos, fit=space, out="ada")
    assert main([*trained, f"--out-dir={tmp_path / 'alone'}"]) == 0
    assert "To fit: and 96 px (--save-memory --resolution 96)." in caplog.messages
    alone = tmp_path / "alone"
    adapter = load_adapter(alone / "ada.safetensors", [alone / "embeddings"])
    assert adapter.recipe is not None and adapter.recipe.resolution == 96

    job = {**SETTINGS, "person": photos["source"], "style": photos["style"], "out": "ada"}
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text(yaml.safe_dump([{**job, "base": str(small_base), "fit": space}]))
    worker = Worker(TrainLoader, str(tmp_path / "results"), pictures=False)
    record = worker.train(read_jobs(jobs, JobReader(tmp_path))[0], 1)
    assert "To fit: and 96 px (--save-memory --resolution 96)." in record.warnings
    one, other = (
        load_file(tmp_path / place / "embeddings" / "my-person.safetensors")
        for place in ("results/ada", "alone")
    )
    assert one.keys() == other.keys() and all(v.equal(other[k]) for k, v in one.items())

    limit = tmp_path / "memory.max"  # as a container's
    limit.write_text(f"{GB // 5}\n")
    monkeypatch.setattr(import_module("magicapture.planning.room"), "_CONTAINER", limit)
    caplog.clear()
    small = words("train", base=small_base, **photos, resolution=96, out="eve")
    small += [f"--out-dir={tmp_path / 'eve'}"]
    assert main(small) == 2
    (refused,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "this computer has 0.2 GB. Take --save-memory" in refused and "--anyway" in refused
    assert not [*tmp_path.glob("eve/**/*.safetensors")]
    assert main([*small, "--anyway"]) == 0
    assert any("more than this computer has. It may stop half-way" in m for m in caplog.messages)
    assert (tmp_path / "eve" / "eve.safetensors").is_file()
