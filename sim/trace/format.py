"""The trace format: JSON Lines, one object a line, fields always in the order of the structs.

    line 1     Header       what was run, and how
    line 2     State        the objects that exist before the first event
    then       EventRecord  one line per event, steps 0, 1, 2 ...
    last line  Verdict      how the run ended, and the findings; missing if it was killed

A trace names everything by meaning (thread, operation, object and field, kernel function), never
by line numbers, ids or paths, so the same choices give the same bytes in every process, under
every host and hash seed.  Fields that say nothing are left out; ``null`` is a value.

This module needs nothing that runs: a report is made from a trace alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, final

import msgspec
from msgspec import UNSET, UnsetType

from sim.events import Finding

FORMAT: Final = "rcusim-trace"
VERSION: Final = 1

#: What a modelled value looks like in a trace: JSON, objects by their label, bytes as hex.
Value = Any


@final
class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was run.  Everything from `digest` on is a hint for people, not a lock.

    source       file or module that the workload was found by; empty: it was found by its name
    parameters   of the workload
    environment  what the workload says about its world: kernel version, fixes, preemption ...
    strategy     what made the choices; seed (None: it has none); execution: its number, from 1
    digest       of the model's sources
    """

    format: str = FORMAT
    version: int = VERSION
    workload: str
    source: str = ""
    parameters: dict[str, Value] = {}
    environment: dict[str, str] = {}
    strategy: str = ""
    seed: int | None = None
    execution: int = 1
    digest: str = ""
    tool: str = ""
    python: str = ""


@final
class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The objects that exist before the first event, and their cells that are not zero.

    Threads come into being at events: the main thread at the first, others at a FORK.
    """

    objects: dict[str, dict[str, Value]]


@final
class WaitRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thread of a deadlock: the operation that it is stuck at, and for which threads."""

    thread: str
    op: str
    label: str = ""
    on: tuple[str, ...] = ()


@final
class EventRecord(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    rename={"function": "in"},
):
    """A step that happened.

    op        what the code calls it (``READ_ONCE``); kind: the engine's name for it (``LOAD``)
    label     what it touches: object and field, thread, domain, CPU
    function  the innermost modelled function (in the file: ``in``)
    nth       which occurrence of (op, function, label) in this thread it is, from 1
    read      the value that it saw, wrote: the value that it left (ALLOC: cells that are not zero)
    operand   what else it was given: an expected value, a section, a deadline, a remark
    fault     what memory found wrong with it: ``use-after-free`` ...
    stack     the modelled call stack, innermost first: of allocations, frees and faults
    choice    what the strategy chose here: an index into `enabled`, or a value below `of`
    waiting   threads that are stuck (DEADLOCK)
    """

    step: int
    thread: str
    op: str
    kind: str
    label: str = ""
    function: str = ""
    nth: int = 1
    read: Value | UnsetType = UNSET
    wrote: Value | UnsetType = UNSET
    operand: Value | UnsetType = UNSET
    fault: str = ""
    stack: tuple[str, ...] = ()
    choice: int | UnsetType = UNSET
    enabled: tuple[str, ...] = ()
    of: int = 0
    waiting: tuple[WaitRecord, ...] = ()


@final
class DetailRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a finding's report: a heading, and lines below it."""

    heading: str
    lines: tuple[str, ...]


@final
class FindingRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a detector reported; see :class:`sim.events.Finding`.

    stack  the modelled call stack at the finding's step, innermost first
    """

    kind: str
    title: str
    threads: tuple[str, ...]
    step: int
    decides: bool = True
    fatal: bool = True
    stack: tuple[str, ...] = ()
    details: tuple[DetailRecord, ...] = ()

    @classmethod
    def of(cls, finding: Finding, stack: tuple[str, ...]) -> FindingRecord:
        """The record of `finding`, noticed where the call stack was `stack`."""
        return cls(
            kind=finding.kind,
            title=finding.title,
            threads=finding.threads,
            step=finding.step,
            decides=finding.decides,
            fatal=finding.fatal,
            stack=stack,
            details=tuple(DetailRecord(d.heading, d.lines) for d in finding.details),
        )


@final
class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the run ended.

    verdict  done, deadlock, finding (stopped by a fatal one) or step-limit
    steps    how many events there are
    """

    verdict: str
    steps: int
    findings: tuple[FindingRecord, ...] = ()


#: The verdict of a run that ran out of its budget of steps: it could have gone on.
STEP_LIMIT: Final = "step-limit"

Line = Header | State | EventRecord | Verdict


@final
@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that has been read.

    path     where from
    verdict  None: the run was killed, and the last event was on line `last_line`
    """

    path: str
    header: Header
    state: State
    events: tuple[EventRecord, ...]
    verdict: Verdict | None

    @property
    def last_line(self) -> int:
        """The number of the last complete line."""
        return 2 + len(self.events) + (self.verdict is not None)

    @property
    def findings(self) -> tuple[FindingRecord, ...]:
        """What the detectors reported, in order."""
        return self.verdict.findings if self.verdict is not None else ()

    @property
    def choices(self) -> tuple[int, ...]:
        """The choices of the run, as `sim.strategies.replay.Choices` takes them."""
        return tuple(e.choice for e in self.events if e.choice is not UNSET)

    @property
    def threads(self) -> tuple[str, ...]:
        """Names of the threads, in the order in which they were started."""
        names: dict[str, None] = {}
        for event in self.events:
            names[event.thread] = None
            if event.kind == "FORK":
                names[event.label] = None
            names |= dict.fromkeys(wait.thread for wait in event.waiting)
        return tuple(names)


_ENCODER: Final = msgspec.json.Encoder()


def encode(line: Line) -> bytes:
    """One line of a trace file, with its newline; the same bytes for equal records."""
    return _ENCODER.encode(line) + b"\n"


# -- one event as one line of text ---------------------------------------------------------------


def plain(text: str) -> str:
    """`text` without anything that a terminal would act on: control characters are escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def describe_value(value: Value) -> str:
    """A value of a trace in short form: ``NULL``, ``7``, ``map#main.0``, ``[a, b]``."""
    match value:
        case None:
            return "NULL"
        case str():
            return plain(value) or '""'
        case list() | tuple():
            return "[" + ", ".join(describe_value(item) for item in value) + "]"
        case dict():
            items = (f"{plain(key)}: {describe_value(item)}" for key, item in value.items())
            return "{" + ", ".join(items) + "}"
    return json.dumps(value)


def describe_effect(event: EventRecord) -> str:
    """What an event did to what it touches: ``= 1`` (read), ``:= 2``, ``1 -> 2``."""
    if event.of:
        return f"= {event.choice if event.choice is not UNSET else 0} of {event.of}"
    read, wrote = event.read, event.wrote
    parts = []
    if read is not UNSET and wrote is not UNSET:
        parts.append(f"{describe_value(read)} -> {describe_value(wrote)}")
    elif read is not UNSET:
        parts.append(f"= {describe_value(read)}")
    elif wrote is not UNSET:
        parts.append(f":= {describe_value(wrote)}")
    if event.operand is not UNSET:
        given = event.operand if isinstance(event.operand, list | tuple) else [event.operand]
        parts.append(f"({', '.join(map(describe_value, given))})")
    if event.fault:
        parts.append(f"!! {plain(event.fault)}")
    return " ".join(parts)


def describe_event(event: EventRecord) -> str:
    """An event as one line of text: ``step 7  reader: READ_ONCE map.ptr = NULL  in lookup``."""
    parts = [plain(event.op), plain(event.label), describe_effect(event)]
    text = f"step {event.step}  {plain(event.thread)}: {' '.join(part for part in parts if part)}"
    if event.function:
        text += f"  in {plain(event.function)}"
    if event.nth > 1:
        text += f" (occurrence {event.nth})"
    return text
