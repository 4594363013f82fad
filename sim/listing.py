"""The text that a machine executes, at a step of a recorded run.

A model whose machine has a method ``listing(memory) -> list[str]`` can be asked for it; others
have no text. It reads memory from outside, so that the run stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from sim.choosing import Picks
from sim.errors import UsageError
from sim.events import Event
from sim.execution import Execution, Observer
from sim.hosts import direct
from sim.memory import Memory
from sim.record import builder, program_of
from sim.trace.format import Trace
from sim.trace.replay import Divergence, replay
from sim.trace.writer import Build

Listing = Callable[[Memory], list[str]]


def text_at(trace: Trace, step: int | None) -> tuple[list[str], Divergence | None]:
    """Replay `trace`; the text right after `step` (default: at the end), and how it diverged.

    Raises UsageError if the workload's machine has no text, or none at that step, or the trace
    has no such step.
    """
    program = program_of(trace)
    listing: Listing | None = getattr(program.machine, "listing", None)
    if listing is None:
        raise UsageError(f"{program.workload.name} runs on no model that has text to show")
    last = len(trace.events) - 1
    if step is not None and step > last:
        raise UsageError(f"--at {step}: the trace ends with step {last}")
    look = _Look(builder(program), listing, last if step is None else step)
    divergence = replay(trace, look.build, direct.run)
    if not look.lines and divergence is None:
        raise UsageError(f"there is no text at step {look.step} of {trace.path}")
    return look.lines, divergence


@final
class _Look:
    """Builds executions that are looked at after one of their steps."""

    def __init__(self, build: Build, listing: Listing, step: int) -> None:
        self.step: Final = step
        self.lines: list[str] = []
        self._build: Final = build
        self._listing: Final = listing

    def build(self, strategy: Picks, observer: Observer) -> Execution:
        def watch(event: Event) -> Any:
            observer(event)
            if event.step == self.step:
                self.lines = self._listing(execution.memory)

        execution = self._build(strategy, watch)
        return execution
