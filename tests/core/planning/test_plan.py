"""What a plan says, refuses and keeps; the formulas against numbers worked out by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from magicapture.config import Recipe
from magicapture.errors import GpuOutOfMemoryError, OutOfMemoryError
from magicapture.memory import PeakMemory
from magicapture.planning import (
    GB,
    Footprint,
    Plan,
    Record,
    Records,
    Room,
    StepCost,
    Watch,
    choices,
    duration,
    fits,
    quantised,
    room,
)
from magicapture.planning.footprint import peak_bytes, previews, program_bytes, trained_bytes
from magicapture.planning.room import COMPUTER, GPU
from magicapture.training import Stepped

FIRST = StepCost("tokens", 100, 1000, 2 * GB, 10**12)
SECOND = StepCost("both", 300, 10**6, 4 * GB, 4 * 10**12)
FOOTPRINT = Footprint(3 * GB, GB, 2 * GB, 2 * 10**12, (FIRST, SECOND))


def plan(total: float = 24, **changes: object) -> Plan:
    here = Room(GPU, "a GPU", int(total * GB), 0, int(total * GB))
    record = Record("key", "models", "a GPU", FOOTPRINT, {})
    return replace(Plan(record, "adamw", None, 1.0, GB, here), **changes)


def test_the_peak_adds_up() -> None:
    trained = 10**6 * (4 + 8)
    assert trained_bytes(SECOND, "adamw") == trained
    assert trained_bytes(SECOND, "adamw_8bit") < trained / 1.9
    assert peak_bytes(FOOTPRINT, "adamw", GB, 1.0) == (1 + 3 + 4) * GB + trained
    assert peak_bytes(FOOTPRINT, "adamw", GB, 1.5) == (1 + 3 + 6) * GB + trained
    encoding = replace(FOOTPRINT, encoding=9 * GB)
    assert peak_bytes(encoding, "adamw", GB, 1.0) == (1 + 3 + 9) * GB


def test_the_program_is_what_the_process_holds_beside_weights() -> None:
    here = Room(COMPUTER, "a CPU", 16 * GB, 5 * GB, 10 * GB)
    assert program_bytes(here, 3 * GB) == 2 * GB
    assert program_bytes(here, 6 * GB) == GB // 2
    assert program_bytes(replace(here, what=GPU), 3 * GB) == GB // 2


def test_previews_are_counted_with_the_one_at_the_end() -> None:
    assert [previews(100, every) for every in (0, 30, 50, 200)] == [0, 4, 2, 1]


def test_seconds_by_measured_phases_and_else_by_flops() -> None:
    assert plan().seconds is None
    by_speed = plan(speed=1e12)
    assert by_speed.seconds == pytest.approx(100 * 1 + 300 * 4)
    assert replace(by_speed, preview_every=200).seconds == pytest.approx(1300 + 2 * 2)
    measured = {"tokens": 0.5}  # then the other phase takes 2 s a step, whatever was kept
    assert by_speed.seconds_left(0, measured) == pytest.approx(100 * 0.5 + 300 * 2)
    assert by_speed.seconds_left(150, measured) == pytest.approx(250 * 2)
    assert by_speed.seconds_left(400, measured) == 0


def test_the_line_says_what_is_known() -> None:
    assert plan().line() == (
        "Training needs about 8.0 GB; this GPU has 24.0 GB. That is arithmetic, until a step of it "
        "has run here. How long it takes is known after ten steps."
    )
    known = replace(plan(speed=1e12).record, slack=1.0, seconds={"tokens": 1.0, "both": 4.0})
    line = plan(record=known).line()
    assert line == "Training needs about 8.0 GB; this GPU has 24.0 GB. About 22 minutes."
    assert plan(room=None).line().startswith("Training needs about 8.0 GB. That is")
    texts = [duration(seconds) for seconds in (0.2, 40, 120, 5000, 9000)]
    assert texts == ["1 second", "40 seconds", "2 minutes", "83 minutes", "2.5 hours"]


@pytest.mark.parametrize(
    ("total", "fit", "refused"),
    [(24, True, False), (8.2, False, False), (7.5, False, False), (6, False, True)],
)
def test_it_refuses_beyond_the_margin_alone(total: float, fit: bool, refused: bool) -> None:
    of = plan(total)
    assert (of.fits, of.cannot) == (fit, refused)
    assert (of.shortage() is None) == fit
    if refused:
        with pytest.raises(
            GpuOutOfMemoryError, match=r"needs about 8.0 GB; this GPU has 6.0 GB. Do"
        ):
            of.refuse("Do less.")
        with pytest.raises(OutOfMemoryError, match="this computer has"):
            replace(of, room=replace(of.room, what=COMPUTER)).refuse("Do less.")
    else:
        of.refuse("Do less.")


def test_beside_other_programs_it_is_short_though_there_is_enough() -> None:
    of = plan(24, room=Room(GPU, "a GPU", 24 * GB, 0, 6 * GB))
    assert "only 6.0 GB are left" in (of.shortage() or "") and not of.cannot


def test_less_is_offered_the_same_result_first_and_smaller_pictures_last() -> None:
    recipe = Recipe(resolution=512)
    found = list(choices(recipe))
    assert [c.title for c in found[:4]] == [
        "as asked",
        "tasks in turn",
        "checkpointing",
        "both: save memory",
    ]
    sides = [c.recipe.side for c in found[4:]]
    assert sides == [448, 384, 320, 256] and found[-1].recipe.checkpointing
    saved = replace(recipe, batching="in_turn", checkpointing=True)
    assert [c.recipe.side for c in choices(saved)] == [512, *sides]


def test_fits_in_what_is_asked_for_or_in_what_there_is() -> None:
    assert fits(plan(24)) and not fits(plan(24), 7 * GB) and fits(plan(4), 24 * GB)


def test_quantised_weights_take_a_byte() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 3, 3))
    found = quantised(FOOTPRINT, network)
    assert FOOTPRINT.weights - found.weights == 64 * 3
    assert found.phases[0].activations == FIRST.activations + 64 * 4


def test_records_are_kept_and_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "plans.json"
    records = Records(file)
    assert list(records) == [] and records.speed("a GPU", "models") is None
    record = Record("key", "models", "a GPU", FOOTPRINT, {"both": 2.0}, 1.2)
    records.keep(record)
    records.keep(replace(record, key="other", models="others", seconds={"both": 1.0}))
    again = Records(file)
    assert again.get("key") == record and len(list(again)) == 2
    assert again.speed("a GPU", "models") == 2e12  # the same models' before newer ones
    assert again.speed("a GPU", "unknown") == 4e12 and again.speed("another", "models") is None
    file.write_text('{"version": 1, "records": [{"key": 3}]}')
    assert list(Records(file)) == []
    Records(file).keep(record)
    assert Records(file).get("key") == record


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Records(tmp_path / "file" / "plans.json").keep(plan().record)


def test_a_run_is_measured_after_ten_steps_of_each_phase(tmp_path: Path) -> None:
    said: list[str] = []
    records = Records(tmp_path / "plans.json")
    watch = Watch(plan(), torch.device("cpu"), said.append, records)
    watch.begin()
    for step in range(1, 401):
        phase = "tokens" if step <= 100 else "both"
        warm = step in (1, 101)
        seconds = 9.0 if warm else {"tokens": 0.5, "both": 3.0}[phase]
        watch(Stepped(step, 400, phase, {}, 0.0, 0.0, seconds))
    assert len(said) == 2 and said[0].startswith("Measured over 10 steps of tokens: 0.50 s a step")
    left = 90 * 0.5 + 300 * 2
    assert f"about {duration(left)} left" in said[0] and "about 14 minutes left" in said[1]
    kept = Records(tmp_path / "plans.json").get("key")
    assert kept is not None and kept.seconds == {"tokens": 0.5, "both": 3.0}


def test_slack_is_what_the_dearest_phase_took(tmp_path: Path) -> None:
    held = 2**20 * 200
    phase = StepCost("both", 300, 0, held // 2, 10**12)
    record = replace(plan().record, footprint=replace(FOOTPRINT, phases=(phase,)))
    device = torch.device("cpu")
    if PeakMemory(device).process is None:
        pytest.skip("this system does not tell")
    watch = Watch(plan(record=record), device, lambda line: None, Records(tmp_path / "p"), after=2)
    watch.begin()
    block = torch.ones(held // 4)
    for step in (1, 2):
        watch(Stepped(step, 300, "both", {}, 0.0, 0.0, 1.0))
    assert watch.slack == pytest.approx(2.0, rel=0.1) and block.numel()


def test_this_computer_is_told() -> None:
    here = room(torch.device("cpu"))
    assert here is not None and here.what == COMPUTER
    assert 0 < here.held < here.reach <= here.total


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no address space")
def test_a_limited_address_space_is_all_there_is() -> None:
    import resource

    before, here = resource.getrlimit(resource.RLIMIT_AS), torch.device("cpu")
    asked = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    free = room(here)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (asked + 2 * GB, before[1]))
        limited = room(here)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert free is not None and limited is not None and free.total > limited.total
    assert limited.reach == limited.total == pytest.approx(limited.held + 2 * GB, rel=0.02)
