"""Reference counters that go wrong, in the words of lib/refcount.c.

A reference counter is a cell that a read-modify-write named ``refcount_*`` or ``atomic64_*``
adds to (the convention of `kernel_model.linux.refcount`); the result is the count before.
"""

from __future__ import annotations

from typing import Final, final

from sim import ops
from sim.detectors.describe import call_trace, field_of
from sim.events import Detail, Event, Finding
from sim.stack import function_of

REFCOUNT: Final = "refcount"
SATURATED: Final = 1 << 31  # a refcount_t holds an int


@final
class Refcount:
    """Reports underflow, addition on 0, and what would saturate a refcount_t."""

    kinds: frozenset[int] | None = frozenset({ops.RMW})

    def observe(self, event: Event) -> Finding | None:
        name = event.op.name
        if not name.startswith(("refcount_", "atomic64_")) or event.fault is not None:
            return None
        function, argument = event.op.operand
        wrong = _wrong(name, function, event.result, argument)
        if not wrong:
            return None
        kind = "refcount_t" if name.startswith("refcount_") else "atomic64_t"
        thread = event.thread
        return Finding(
            REFCOUNT,
            f"WARNING: {kind}: {wrong} in {function_of(thread, event.op)}",
            (thread.name,),
            event.step,
            (
                Detail(f"{name} by task {thread.name}, the count was {event.result}", ()),
                *field_of(event.op.target),
                call_trace(thread),
            ),
            fatal=False,
        )


def _wrong(name: str, function: str, old: int, argument: int) -> str:
    """What is wrong with the step from `old`; empty: nothing."""
    new = old + argument
    if function not in ("add", "inc_not_zero") or (function == "inc_not_zero" and old == 0):
        return ""
    if argument > 0 and old == 0:
        return "addition on 0; use-after-free"
    if argument < 0 and new < 0:
        return "underflow; use-after-free"
    if name == "refcount_dec" and new == 0:
        return "decrement hit 0; leaking memory"
    if name.startswith("refcount_") and argument > 0 and new >= SATURATED:
        return "saturated; leaking memory"
    return ""
