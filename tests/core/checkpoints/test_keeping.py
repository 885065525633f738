"""Checkpoints of a run: its bits stay, an interruption loses nothing, any step can be taken."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture.adapters import Adapter
from magicapture.checkpoints import Checkpoints, record
from magicapture.errors import InputError, StorageError
from magicapture.training import Event, Prepared, Scored, Stepped, Trainer, TrainingJob, Warned

Make = Callable[..., Checkpoints]


class Stop(Exception):  # noqa: N818
    """What a caller raises to cancel."""


@pytest.fixture
def train(
    job: TrainingJob, make_backbone: Callable[..., Any], face_model: Any
) -> Callable[..., Any]:
    """Train a fresh model; returns the trainer and what was told."""

    def run(
        keeping: Checkpoints | None = None,
        stop: Callable[[Event], bool] = lambda event: False,
        **settings: Any,
    ) -> tuple[Trainer, list[Event]]:
        events: list[Event] = []

        def listen(event: Event) -> None:
            events.append(event)
            if stop(event):
                raise Stop

        with Trainer.open(
            job, make_backbone(), embedder=face_model, listener=listen, **settings
        ) as trainer:
            trainer.run(keeping=keeping)
            trainer.result = trainer.adapter()
        return trainer, events

    return run


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.lora.keys() == other.lora.keys()
    for name, weights in one.lora.items():
        assert torch.equal(weights.down, other.lora[name].down)
        assert torch.equal(weights.up, other.lora[name].up)
    for name, of in one.tokens.items():
        assert all(torch.equal(values, other.tokens[name][key]) for key, values in of.items())


def test_keeping_changes_no_bit_and_any_step_can_be_taken(train, checkpoints: Make, tmp_path: Path):
    reference, _ = train()
    kept, plain, followed = checkpoints(), {}, []
    following = kept.following

    def follow(trainer: Trainer) -> Any:
        followed.append(trainer)
        return following(trainer)

    def note(event: Event) -> bool:
        if isinstance(event, Stepped):
            plain[event.step] = followed[0].adapter()
        return False

    kept.following = follow  # type: ignore[method-assign]
    trainer, told = train(kept, note, state_folder=tmp_path)
    assert trainer.history == reference.history
    assert_same(trainer.result, reference.result)
    assert [one.step for one in kept.records] == [2, 3]
    scored = [event for event in told if isinstance(event, Scored)]
    assert [event.step for event in scored] == [2, 3]
    assert scored[-1].best == kept.best.step
    for step in (2, 3):
        taken = kept.adapter(step)
        assert_same(taken, plain[step])
        assert taken.info["steps"] == str(step) and taken.recipe == trainer.recipe
    assert kept.adapter().info["steps"] == str(kept.best.step)
    columns = {"both", "identity", "style", "copies", "faces"}
    assert columns == kept.records[0].pictures.keys()
    assert kept.records[0].run.keys() == {"obedience", "leakage"}
    assert all(len(values) == 2 for values in kept.records[0].pictures.values())
    with pytest.raises(InputError, match="Step 5 is not kept; expected one of 2, 3"):
        kept.adapter(5)
    assert kept.grid().shape[0] == 3
    assert "another than the identity loss used" in str(kept)


def test_an_interruption_while_a_step_is_scored_loses_nothing(
    train, checkpoints: Make, tmp_path: Path
):
    whole = checkpoints()
    reference, _ = train(whole, state_folder=tmp_path / "whole")
    for stage in ("scoring step 2", "scoring step 3"):
        stop = lambda event, s=stage: (  # noqa: E731
            isinstance(event, Prepared) and (event.stage, event.done) == (s, 1)
        )
        with pytest.raises(Stop):
            train(checkpoints(), stop, state_folder=tmp_path / "parts")
    again = checkpoints()
    trainer, told = train(again, state_folder=tmp_path / "parts")
    assert_same(trainer.result, reference.result)
    assert again.records == whole.records and again.best == whole.best
    assert torch.equal(again.grid(), whole.grid())
    assert [event.step for event in told if isinstance(event, Scored)] == [2, 3]
    assert_same(again.adapter(2), whole.adapter(2))


def test_a_finished_run_answers_at_once_and_what_measures_otherwise_measures_anew(
    train, checkpoints: Make, tmp_path: Path
):
    first, other, again = checkpoints(), checkpoints(keep_seeds=1), checkpoints(choose="last")
    train(first, state_folder=tmp_path)
    _, told = train(again, state_folder=tmp_path)
    assert again.records == first.records and again.best.step == 3
    assert not any(isinstance(e, Prepared) and "scoring" in e.stage for e in told)
    train(other, state_folder=tmp_path)
    assert [len(one.pictures["both"]) for one in other.records] == [1, 1]
    for one, two in zip(first.records, other.records, strict=True):
        assert two.run == one.run, "the adapter that was read is the one that was kept"
        assert two.pictures["style"] == one.pictures["style"][:1]


def test_steps_beyond_the_state_are_made_again(train, checkpoints: Make, tmp_path: Path):
    train(checkpoints(), state_folder=tmp_path)
    (folder,) = tmp_path.glob("*.kept")
    assert sorted(file.name for file in folder.iterdir()) == [
        f"000000{step}.{ending}" for step in (2, 3) for ending in ("json", "png", "safetensors")
    ]
    _, told = train(checkpoints(), state_folder=tmp_path, fresh=True)
    assert [e.stage for e in told if isinstance(e, Prepared) and e.done == 0][-2:] == [
        "scoring step 2",
        "scoring step 3",
    ]
    (folder / "0000002.json").write_text("{}")
    damaged = checkpoints()
    _, told = train(damaged, state_folder=tmp_path)
    assert [one.step for one in damaged.records] == [3]
    assert any(isinstance(e, Warned) and "steps 2 are missing" in e.text for e in told)


def test_a_run_stops_early(train, checkpoints: Make, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(record, "PATIENCE", 1)
    monkeypatch.setattr(record.Record, "worth", lambda self, choose: -float(self.step))
    kept = checkpoints(keep_every=1, stop_early=True)
    trainer, _ = train(kept, state_folder=tmp_path)
    assert trainer.step == 2 and kept.best.step == 1
    trainer, _ = train(checkpoints(keep_every=1, stop_early=True), state_folder=tmp_path)
    assert trainer.step == 2, "asked for again, it has stopped"
    trainer, _ = train(checkpoints(keep_every=1), state_folder=tmp_path)
    assert trainer.step == 3, "and goes on where it is not to stop"


def test_without_a_folder_they_are_in_memory_and_what_lacks_is_named(
    train, checkpoints: Make, face_model
):
    kept = checkpoints()
    bare = replace(kept.keep.analyzer, embedder=None)
    kept.keep = replace(kept.keep, analyzer=bare)
    train(kept)
    assert "identity: there is no face recognition model." in str(kept)
    assert kept.records[0].pictures["both"] == [
        min(1.0, max(0.0, value)) for value in kept.records[0].pictures["style"]
    ]
    assert kept.adapter(2).info["steps"] == "2"
    needing = checkpoints(choose="identity")
    needing.keep = kept.keep
    with pytest.raises(InputError, match="'identity', which is not measured"):
        train(needing)
    assert kept.keep.with_loss(face_model).analyzer.embedder is face_model


def test_the_files(train, checkpoints: Make, tmp_path: Path):
    kept = checkpoints()
    train(kept, state_folder=tmp_path)
    kept.write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as opened:
        lines = list(csv.DictReader(opened))
    assert [line["step"] for line in lines] == ["2", "3"]
    assert [line["step"] for line in lines if line["best"] == "1"] == [str(kept.best.step)]
    data = json.loads(json.dumps(kept.as_dict()))
    assert data["best"] == kept.best.step and data["checkpoints"][0]["means"]["style"] == float(
        lines[0]["style"]
    )
    (folder,) = tmp_path.glob("*.kept")
    (folder / "0000002.safetensors").unlink()
    with pytest.raises(StorageError, match="step 2 cannot be read"):
        kept.adapter(2)
