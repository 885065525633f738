"""States on disk: none is lost, none is mistaken, and what is said of them is true."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture.training import Resumed, Stepped, Trainer, Warned
from magicapture.training.state import KEPT, StateKeeper

RUN = "ab" * 32


def state(step: int = 3, run: str = RUN) -> dict[str, Any]:
    return {"fingerprint": run, "step": step, "lora": {"down": torch.arange(2000.0)}}


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def keeper(tmp_path: Path, warnings: list[str]) -> StateKeeper:
    return StateKeeper(tmp_path / "states", RUN, warn=warnings.append)


@pytest.fixture
def disk_full() -> Callable[[bool], None]:
    """Switches a limit on: files of this process may have no more than 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if on else before[0], before[1]))

    yield limit
    limit(False)


def test_a_state_comes_back_as_it_was(keeper, tmp_path, warnings):
    assert keeper.load() is None and keeper.step is None
    assert keeper.save(state())
    assert keeper.step == 3
    again = StateKeeper(tmp_path / "states", RUN)
    loaded = again.load()
    assert torch.equal(loaded.pop("lora")["down"], torch.arange(2000.0))
    assert loaded == {"fingerprint": RUN, "step": 3}
    assert again.step == 3 and not warnings
    assert StateKeeper(tmp_path / "states", "cd" * 32).load() is None


@pytest.mark.parametrize("at", [0, 30, 60, 4000, -1])
def test_a_damaged_state_is_set_aside_and_said(keeper, warnings, at):
    keeper.save(state())
    damaged = bytearray(keeper.path.read_bytes())
    damaged[at] ^= 1
    for number in ("", "-2"):
        keeper.path.write_bytes(damaged)
        assert keeper.load() is None
        aside = keeper.path.with_suffix(f".damaged{number}")
        assert aside.read_bytes() == damaged and not keeper.path.exists()
        assert "damaged" in warnings[-1] and aside.name in warnings[-1]
    assert keeper.save(state())


@pytest.mark.parametrize("content", [b"", b"half", b"PK\3\4"])
def test_what_is_no_state_is_set_aside(keeper, warnings, content):
    keeper.path.parent.mkdir()
    keeper.path.write_bytes(content)
    assert keeper.load() is None
    assert keeper.path.with_suffix(".damaged").read_bytes() == content


def test_a_state_that_was_renamed_is_not_taken_for_this_runs(keeper, tmp_path, warnings):
    other = StateKeeper(tmp_path / "states", "cd" * 32)
    other.save(state(run="cd" * 32))
    other.path.rename(keeper.path)
    assert keeper.load() is None and warnings


def test_the_newest_states_of_other_runs_are_kept(keeper, tmp_path):
    folder = tmp_path / "states"
    for number in range(KEPT + 2):
        run = f"{number:x}" * 64
        other = StateKeeper(folder, run)
        other.save(state(run=run))
        os.utime(other.path, (1e9 + number, 1e9 + number))
    leftovers = [folder / f".{i:016x}.state.tmp-magicapture" for i in range(9)]
    for file in (*leftovers, folder / "mine.txt"):
        file.write_text("half")
        os.utime(file, (2e9, 2e9) if file is leftovers[0] else (1e9, 1e9))
    keeper.save(state())
    names = {p.name for p in folder.glob("[0-9a-f]*.state")}
    assert names == {keeper.path.name, *(f"{n:x}" * 24 + ".state" for n in range(2, KEPT + 2))}
    assert (folder / "mine.txt").exists()
    left = [file for file in leftovers if file.exists()]
    assert left == leftovers[:1], "one that is being written now, by another process, is left"


def test_a_state_is_due_by_steps_and_by_time(tmp_path):
    keeper = StateKeeper(tmp_path, RUN, every_steps=10, every_seconds=60)
    assert [step for step in range(1, 31) if keeper.due(step)] == [10, 20, 30]
    keeper = StateKeeper(tmp_path, RUN, every_steps=1000, every_seconds=0.05)
    assert not keeper.due(1)
    time.sleep(0.06)
    assert keeper.due(1)
    keeper.save(state())
    assert not keeper.due(2)


def test_a_full_disk_is_said_once_and_saving_is_tried_again(keeper, warnings, disk_full):
    disk_full(True)
    assert not any(keeper.save(state(step)) for step in range(1, 49))
    disk_full(False)
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert "the disk is full" in warnings[0]
    assert keeper.farewell(48, 100, "AGAIN") == (
        "Stopped after step 48 of 100. Not saved: the disk is full."
    )
    assert keeper.save(state(49))
    assert keeper.farewell(49, 100, "AGAIN") == (
        "Stopped after step 49 of 100. Nothing is lost: AGAIN"
    )
    disk_full(True)
    assert not keeper.save(state(50))
    assert len(warnings) == 2
    assert keeper.farewell(50, 100, "AGAIN") == (
        "Stopped after step 50 of 100. Not saved: the disk is full. What is saved is step 49: AGAIN"
    )
    disk_full(False)
    assert keeper.load()["step"] == 49, "the older state is whole"


def test_a_state_that_is_gone_is_not_promised(keeper):
    keeper.save(state())
    keeper.path.unlink()
    assert "Nothing is lost" not in keeper.farewell(3, 9, "AGAIN")


def test_a_folder_that_cannot_be_written_is_said(tmp_path, warnings):
    (tmp_path / "file").write_text("")
    keeper = StateKeeper(tmp_path / "file", RUN, warn=warnings.append)
    assert not keeper.save(state())
    assert "file exists" in warnings[0] or "not a directory" in warnings[0]


def test_ctrl_c_does_not_break_a_save(keeper, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    flush = os.fsync

    def pressed(file: int) -> None:
        signal.raise_signal(signal.SIGINT)
        flush(file)

    monkeypatch.setattr(os, "fsync", pressed)
    try:
        with pytest.raises(KeyboardInterrupt):
            keeper.save(state())
    finally:
        signal.signal(signal.SIGINT, before)
    assert keeper.step == 3 and keeper.load()["step"] == 3


# -- in a run -----------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818
    """What a caller raises to cancel."""


@pytest.fixture
def short_job(make_job):
    return make_job(phases=make_job().recipe.phases[:1])


def stopping(at: int, events: list):
    def listen(event) -> None:
        events.append(event)
        if isinstance(event, Stepped) and event.step == at:
            raise Stop

    return listen


def test_a_damaged_state_starts_the_run_over(short_job, make_backbone, tmp_path):
    with (
        pytest.raises(Stop),
        Trainer.open(
            short_job, make_backbone(), state_folder=tmp_path, listener=stopping(2, [])
        ) as trainer,
    ):
        trainer.run()
    data = bytearray(trainer.keeper.path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(b ^ 255 for b in data[middle : middle + 64])
    trainer.keeper.path.write_bytes(data)
    events = []
    with Trainer.open(
        short_job, make_backbone(), state_folder=tmp_path, listener=events.append
    ) as trainer:
        trainer.run()
    assert not [e for e in events if isinstance(e, Resumed)]
    assert [e for e in events if isinstance(e, Warned) and "damaged" in e.text]
    assert list(tmp_path.glob("*.damaged"))


def test_a_run_goes_on_while_the_disk_is_full(short_job, backbone, tmp_path, disk_full):
    events = []

    def listen(event):
        disk_full(isinstance(event, Stepped))
        stopping(2, events)(event)

    with (
        pytest.raises(Stop),
        Trainer.open(
            short_job, backbone, state_folder=tmp_path, save_every=1, listener=listen
        ) as trainer,
    ):
        trainer.run()
    disk_full(False)
    said = [e.text for e in events if isinstance(e, Warned) and "disk is full" in e.text]
    assert len(said) == 1
    assert trainer.farewell("AGAIN") == "Stopped after step 2 of 3. Not saved: the disk is full."


@pytest.mark.parametrize("settings", [{"every_steps": 1}, {"every_seconds": 0.0}])
def test_the_state_is_saved_while_the_run_goes_on(short_job, backbone, tmp_path, settings):
    """By steps, and by time where steps are slow."""
    saved = []

    def listen(event):
        if isinstance(event, Stepped):
            saved.append(trainer.keeper.step)

    with Trainer.open(short_job, backbone, state_folder=tmp_path, listener=listen) as trainer:
        vars(trainer.keeper).update(settings)
        trainer.run()
    assert saved == [None, 1, 2], "the event of a step comes before its state is saved"


def test_a_signal_within_the_update_leaves_the_step_whole(
    short_job, make_backbone, tmp_path, monkeypatch
):
    """The optimiser runs over several tensors; half of it would be neither step."""
    with Trainer.open(short_job, make_backbone()) as trainer:
        whole = trainer.run()
    update = torch.optim.AdamW.step

    def pressed(optimizer, *args, **kwargs):
        result = update(optimizer, *args, **kwargs)
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)
        return result

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(torch.optim.AdamW, "step", pressed)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            Trainer.open(short_job, make_backbone(), state_folder=tmp_path) as trainer,
        ):
            trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
        monkeypatch.undo()
    assert trainer.keeper.step == 2 and len(trainer.history) == 2
    with Trainer.open(short_job, make_backbone(), state_folder=tmp_path) as trainer:
        resumed = trainer.run()
    for name in whole.tokens:
        assert torch.equal(whole.tokens[name]["clip_l"], resumed.tokens[name]["clip_l"])
