"""A trace as columns: one per thread, one row per step.

      step  reader                                writer
       0-3  4 steps before two threads could go on
         4  READ_ONCE box.item = item  in box_get |
         5  |                                     xchg box.item item -> NULL  in box_drop
         6  |                                     choose = 0 of 3
    *    7  |                                     kfree item
         8  |                                     exit
    !    9  load item.value = 7 !! use-after-free
              in box_get
            BUG: KASAN: use-after-free in box_get
            end of the run (finding), 10 steps

A row says what the thread did, to what, with which value; the function is said where it is not
the one of the row above it.  ``!`` marks the step of a finding, ``*`` where the object that it is
about was allocated or freed.  Threads that do nothing in the steps shown have no column.  With
many threads the columns overlap: a row then runs on to the right of its column, which is free,
since every row belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Final, Literal, final

from rich.cells import cell_len, set_cell_size

from sim.errors import UsageError
from sim.report.text import ShortNames, wrap
from sim.trace.format import EventRecord, Trace, describe_effect, plain

Since = Literal["threads", "all"]

MIN_WIDTH: Final = 40
_COMFORT: Final = 44  # a row should have as much room, if need be by overlapping other columns
_MAX_LINES: Final = 4  # of one row
_TIE: Final = "\N{NO-BREAK SPACE}"  # between words that stay on one line
_ENGINE: Final = ("QUIESCENT", "DEADLOCK")  # events of no thread


def render_columns(trace: Trace, *, width: int = 100, since: Since = "threads") -> str:
    """The trace as text of lines of at most `width` columns.

    since  "threads": fold the steps before the first one at which two threads could go on;
           "all": show every step

    Raises UsageError for a width below 40.
    """
    if width < MIN_WIDTH:
        raise UsageError(f"{width} columns are too few to show a trace: at least {MIN_WIDTH}")
    folded = _setup(trace) if since == "threads" else 0
    table = _Table(trace, width, _acting(trace, folded))
    lines = list(table.head())
    if folded:
        lines += table.across(f"{folded} steps before two threads could go on", f"0-{folded - 1}")
    for event in trace.events:
        table.enter(event)
        if event.step >= folded:
            lines += table.rows(event)
        table.leave(event)
    lines += table.across(_end(trace))
    return "\n".join(line.rstrip() for line in lines)


def _setup(trace: Trace) -> int:
    """How many steps can be folded: those before the first choice between threads or finding."""
    choices = [event.step for event in trace.events if event.enabled]
    if not choices:
        return 0
    first = min([choices[0], *(finding.step for finding in trace.findings)])
    return first if first > 1 else 0


def _acting(trace: Trace, folded: int) -> list[str]:
    """The threads that do something after the folded steps, or end stuck, as they started."""
    acting: dict[str, None] = {}
    for event in trace.events[folded:]:
        engine = event.kind in _ENGINE
        acting |= dict.fromkeys([w.thread for w in event.waiting] if engine else [event.thread])
    return sorted(acting, key=trace.threads.index)


def _end(trace: Trace) -> str:
    if trace.verdict is None:
        return f"no verdict: the trace ends with line {trace.last_line}"
    return f"end of the run ({plain(trace.verdict.verdict)}), {trace.verdict.steps} steps"


def _marks(trace: Trace) -> dict[int, str]:
    """The marks of steps: of findings, and of the life of the objects that these are about."""
    marks: dict[int, str] = {}
    found = {finding.step: "!" for finding in trace.findings}
    hit = [event.label for event in trace.events if event.step in found]
    for event in trace.events:
        if event.kind not in ("ALLOC", "FREE"):
            continue
        if any(label == event.label or label.startswith(f"{event.label}.") for label in hit):
            marks[event.step] = "*"
    return marks | found


@final
class _Table:
    """Lays rows out.

    starts   where each thread's column starts
    alive    threads that have been started and have not ended, whose columns show a bar
    """

    def __init__(self, trace: Trace, width: int, threads: Sequence[str]) -> None:
        self._trace: Final = trace
        self._names: Final = ShortNames(trace)
        self._marks: Final = _marks(trace)
        last = str(max(len(trace.events) - 1, 0))
        self._gutter: Final = max(len("0-") + len(last), len("step")) + 4
        room = width - self._gutter
        comfort = min(_COMFORT, room * 2 // 3)
        latest = room - comfort  # a column may start
        stride = min(room // max(len(threads), 1), latest // max(len(threads) - 1, 1))
        self._room: Final = room
        self._stride: Final = max(1, stride)
        self._starts: Final = {t: min(i * self._stride, latest) for i, t in enumerate(threads)}
        self._text_width: Final = max(comfort, stride - 2)
        self._alive: Final[dict[str, None]] = {}
        self._function: Final[dict[str, str]] = {}
        self._last = ""

    def head(self) -> Iterator[str]:
        """The names of the threads above their columns; in steps if they would overlap."""
        names = {thread: plain(thread) for thread in self._starts}
        label = f"{'step':>{self._gutter - 2}}  "
        if all(cell_len(name) < self._stride for name in names.values()):
            yield label + "".join(set_cell_size(name, self._stride) for name in names.values())
            return
        for thread, name in names.items():
            start = self._starts[thread]
            for line in wrap(name, self._room - start):
                yield label + " " * start + line
                label = " " * self._gutter

    def across(self, text: str, step: str = "") -> list[str]:
        """A text over all columns."""
        lines = wrap(text, self._room, indent="  ")
        return [
            f"{shown:>{self._gutter - 2}}  {line}"
            for shown, line in zip_longest([step], lines, fillvalue="")
        ]

    def enter(self, event: EventRecord) -> None:
        """Take note of who has been started, before the rows of an event, shown or not."""
        if event.kind not in _ENGINE:
            here = (event.thread, event.label) if event.kind == "FORK" else (event.thread,)
            self._alive.update((thread, None) for thread in here if thread in self._starts)

    def leave(self, event: EventRecord) -> None:
        """Take note of who has ended, after the rows of an event, shown or not."""
        if event.kind == "EXIT":
            self._alive.pop(event.thread, None)

    def rows(self, event: EventRecord) -> Iterator[str]:
        """The lines of one step."""
        mark = self._marks.get(event.step, "")
        step = f"{mark:<2}{event.step:>{self._gutter - 4}}"
        if event.kind in _ENGINE:
            yield from self.across(plain(event.op), step)
            yield from self._waiting(event)
        else:
            yield from self._row(event.thread, self._text(event), step)
        for finding in self._trace.findings:
            if finding.step == event.step:
                yield from self.across(plain(finding.title))

    def _row(self, thread: str, text: str, step: str = "") -> Iterator[str]:
        start = self._starts[thread]
        width = min(self._text_width, self._room - start)
        lines = wrap(self._names.shorten(text), width, indent="  ")
        if len(lines) > _MAX_LINES:
            lines[_MAX_LINES - 1 :] = ["  ..."]
        for shown, line in zip_longest([step], lines, fillvalue=""):
            end = start + cell_len(line) + 1
            bars = self._bars(0, start), self._bars(end, self._room)
            yield f"{shown:>{self._gutter - 2}}  {bars[0]}{line.replace(_TIE, ' ')} {bars[1]}"

    def _text(self, event: EventRecord) -> str:
        parts = [plain(event.op), plain(event.label), describe_effect(event)]
        function = event.function
        known = self._last == event.thread and self._function.get(event.thread) == function
        if function and not known:
            parts.append(f" in{_TIE}{plain(function)}")
        self._function[event.thread] = function
        self._last = event.thread
        return " ".join(part for part in parts if part)

    def _waiting(self, event: EventRecord) -> Iterator[str]:
        """What each thread of a deadlock waits for, in its column."""
        for wait in event.waiting:
            held = f"(for {', '.join(wait.on)})" if wait.on else ""
            parts = ["waits:", wait.op, wait.label, held]
            yield from self._row(wait.thread, plain(" ".join(part for part in parts if part)))

    def _bars(self, first: int, end: int) -> str:
        """Columns `first` to `end`, with a bar where that of a living thread starts."""
        line = [" "] * (end - first)
        for thread in self._alive:
            start = self._starts[thread]
            if first <= start < end:
                line[start - first] = "|"
        return "".join(line)
