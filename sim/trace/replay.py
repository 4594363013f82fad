"""Strict replay: run a program under a trace's choices; every line must be the same again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import msgspec
from msgspec import UNSET

from sim.errors import RcusimError
from sim.execution import Execution
from sim.threads import Thread
from sim.trace.format import (
    STEP_LIMIT,
    EventRecord,
    Header,
    Line,
    State,
    Trace,
    Verdict,
    describe_event,
    describe_value,
    encode,
)
from sim.trace.writer import Build, TraceWriter

_BEFORE: Final = 5  # recorded events shown before a difference
_AROUND: Final = 10  # and in all


@final
@dataclass(frozen=True, slots=True)
class Divergence:
    """The first difference between a trace and its replay.

    path      of the trace
    step      where it is; a difference in the initial state counts as step 0
    expected  the line of the trace
    got       the line of the replay, of the same place
    enabled   threads among which the replay chose there; without a choice, the one that went on
    around    the ten recorded events around it
    """

    path: str
    step: int
    expected: Line
    got: Line
    enabled: tuple[str, ...]
    around: tuple[EventRecord, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"replay of {self.path} diverged at step {self.step}"
        yield f"  expected  {_describe(self.expected)}"
        yield f"  got       {_describe(self.got)}"
        for field, expected, got in _differences(self.expected, self.got):
            yield f"    {field}: {expected} was recorded, now {got}"
        recorded = _enabled(self.expected)
        also = "" if recorded == self.enabled else f" (recorded: {', '.join(recorded) or 'none'})"
        yield f"  enabled   {', '.join(self.enabled) or 'none'}{also}"
        yield "  recorded around it:"
        for event in self.around:
            yield f"  {'>' if event.step == self.step else ' '} {describe_event(event)}"


def replay(trace: Trace, build: Build, host: Callable[[Execution], None]) -> Divergence | None:
    """Run what `build` makes as `trace` says; None if each event and the verdict are the same.

    Of a trace without a verdict, or of one that ended at its limit of steps, no more is run
    than it has events.  Raises what running the program raises.
    """
    comparison = _Comparison(trace)
    writer = TraceWriter(comparison.check, trace.header)
    execution = build(writer.watch(_Recorded(comparison)), writer)
    try:
        writer.begin(execution)
        host(execution)
        writer.end()
    except _Stop as stop:
        return stop.divergence
    return None


@final
class _Stop(RcusimError):
    """Ends a replay from inside, through any host: it has diverged, or run as far as recorded."""

    def __init__(self, divergence: Divergence | None) -> None:
        super().__init__("replay stopped")
        self.divergence: Final = divergence


@final
class _Comparison:
    """Takes the lines of the replay and holds each against that of the trace.

    step  of the next event
    """

    def __init__(self, trace: Trace) -> None:
        self.step = 0
        self._trace: Final = trace

    def check(self, line: Line) -> None:
        if isinstance(line, Header):
            return  # hints
        expected = self._trace.state if isinstance(line, State) else self._next()
        if encode(line) != encode(expected):
            raise _Stop(self._divergence(expected, line))
        if isinstance(line, EventRecord):
            self.step += 1

    def expected(self) -> EventRecord | None:
        """The recorded event that must come next; None after the last."""
        events = self._trace.events
        return events[self.step] if self.step < len(events) else None

    def _next(self) -> EventRecord | Verdict:
        event, verdict = self.expected(), self._trace.verdict
        if event is not None:
            return event
        if verdict is None or verdict.verdict == STEP_LIMIT:
            raise _Stop(None)
        return verdict

    def _divergence(self, expected: Line, got: Line) -> Divergence:
        first = max(0, self.step - _BEFORE)
        around = self._trace.events[first : first + _AROUND]
        return Divergence(self._trace.path, self.step, expected, got, _enabled(got), around)


@final
class _Recorded:
    """Makes the recorded choices, and any where they do not fit.

    It need not complain: the event shows what it was chosen from, so it will differ.
    """

    def __init__(self, comparison: _Comparison) -> None:
        self._comparison: Final = comparison

    def begin(self) -> bool:
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        expected = self._comparison.expected()
        names = [thread.name for thread in enabled]
        return names.index(expected.thread) if expected and expected.thread in names else 0

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        expected = self._comparison.expected()
        choice = expected.choice if expected is not None else UNSET
        return choice if choice is not UNSET and choice < n else 0


def _enabled(line: Line) -> tuple[str, ...]:
    return line.enabled or (line.thread,) if isinstance(line, EventRecord) else ()


def _describe(line: Line) -> str:
    if isinstance(line, EventRecord):
        return describe_event(line)
    if isinstance(line, Verdict):
        titles = "; ".join(finding.title for finding in line.findings)
        return f"the end: {line.verdict} after {line.steps} steps" + (titles and f": {titles}")
    return "the initial state"


def _differences(expected: Line, got: Line) -> Iterator[tuple[str, str, str]]:
    """Field by field what differs between two lines of one kind."""
    if type(expected) is not type(got):
        return
    old: dict[str, Any] = msgspec.to_builtins(expected)
    new: dict[str, Any] = msgspec.to_builtins(got)
    if isinstance(expected, State):
        old, new = old["objects"], new["objects"]
    for field in [*old, *(name for name in new if name not in old)]:
        if old.get(field, UNSET) != new.get(field, UNSET):
            yield field, _value(old.get(field, UNSET)), _value(new.get(field, UNSET))


def _value(value: Any) -> str:
    return "nothing" if value is UNSET else describe_value(value)
