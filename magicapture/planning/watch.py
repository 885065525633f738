"""What a run takes, beside what was planned: said after ten steps, and kept for the next plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..memory import PeakMemory
from ..training import Event, Stepped
from .footprint import duration, gigabytes, trained_bytes
from .plan import Plan
from .records import Record, Records

AFTER = 10
"""Steps of a phase after which it is measured; the first of them warms up and does not count."""

_MIB, _MOST_SLACK = 2**20, 3.0


class Watch:
    """Hears a run's events; `begin` comes before its first step.

    say: gets a line after `after` steps of each phase. records: keep what was measured.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        say: Callable[[str], None],
        records: Records | None = None,
        after: int = AFTER,
    ) -> None:
        self.plan, self.device, self.say, self.after = plan, device, say, after
        self.records = records or Records()
        self.seconds: dict[str, float] = {}
        self.slack: float | None = None
        self._phase, self._taken = "", list[float]()
        self._memory, self._before = PeakMemory(device), 0.0

    def begin(self) -> None:
        """Count the memory from here."""
        self._memory = PeakMemory(self.device)
        self._before = self._memory.most or 0.0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Stepped):
            return
        self._memory.sample()
        if event.phase != self._phase:
            self._phase, self._taken = event.phase, []
        self._taken.append(event.seconds)
        if len(self._taken) == self.after:
            self._measured(event)

    def _measured(self, event: Stepped) -> None:
        counted = self._taken[1:] or self._taken
        self.seconds[event.phase] = sum(counted) / len(counted)
        self.slack = self._slack(event.phase) or self.slack
        left = self.plan.seconds_left(event.step, self.seconds)
        told = [f"{self.seconds[event.phase]:.2f} s a step"]
        if (most := self._memory.most) is not None:
            told.append(f"{gigabytes(most * _MIB)} at the most")
        if left is not None and event.step < event.steps:
            told.append(f"about {duration(left)} left")
        self.say(f"Measured over {self.after} steps of {event.phase}: {', '.join(told)}.")
        self.records.keep(self._record())

    def _slack(self, name: str) -> float | None:
        """Bytes that the activations took over those rehearsed, of the dearest phase alone.

        None for another, and where the memory is not told.
        """
        most = self._memory.most
        dearest = max(self.plan.footprint.phases, key=lambda phase: phase.activations)
        if most is None or name != dearest.name:
            return None
        took = (most - self._before) * _MIB - trained_bytes(dearest, self.plan.optimizer)
        return min(_MOST_SLACK, max(1.0, took / dearest.activations))

    def _record(self) -> Record:
        record = self.plan.record
        seconds = {**record.seconds, **self.seconds}
        slack = record.slack if self.slack is None else self.slack
        return replace(record, seconds=seconds, slack=slack)
