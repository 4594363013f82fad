"""What the modelled code itself says is wrong: exceptions, BUG(), WARN(), broken invariants."""

from __future__ import annotations

import re
from typing import Final, final

from sim import ops
from sim.detectors.describe import call_trace
from sim.events import Detail, Event, Finding
from sim.stack import function_of

CRASH: Final = "crash"
BUG: Final = "kernel-bug"
WARNING: Final = "kernel-warning"
VIOLATED: Final = "invariant"

_IDENTITY: Final = re.compile(r" (object )?at 0x[0-9a-f]+")  # differs from run to run


@final
class Crash:
    """Reports a thread that ends by an exception, and the notes BUG, WARN and violated.

    The value of such a note is a text that says what was checked; it may be empty or None.
    """

    kinds: frozenset[int] | None = frozenset({ops.EXIT, ops.NOTE})

    def observe(self, event: Event) -> Finding | None:
        op = event.op
        if op.kind == ops.EXIT:
            return _exception(event, op.operand) if op.name == "crash" else None
        if op.name not in ("BUG", "WARN", "violated"):
            return None
        text = str(op.operand) if op.operand else ""
        function = function_of(event.thread, op)
        if op.name == "BUG":
            return _said(event, BUG, f"kernel BUG in {function}!", text, fatal=True)
        if op.name == "WARN":
            return _said(event, WARNING, f"WARNING: {text or 'WARN_ON'} in {function}", text)
        return _said(event, VIOLATED, f"BUG: invariant violated: {text or function}", text)


def _said(event: Event, kind: str, title: str, text: str, *, fatal: bool = False) -> Finding:
    what = (Detail(text, ()),) if text else ()
    details = (*what, call_trace(event.thread))
    return Finding(kind, title, (event.thread.name,), event.step, details, fatal=fatal)


def _exception(event: Event, error: BaseException) -> Finding:
    said = _IDENTITY.sub("", str(error).partition("\n")[0])
    name = type(error).__name__
    frames: list[str] = []
    traceback = error.__traceback__
    while traceback is not None:
        code, module = traceback.tb_frame.f_code, traceback.tb_frame.f_globals["__name__"]
        frames.append(f" {module} {code.co_name}")
        traceback = traceback.tb_next
    own = [frame for frame in frames if not frame.startswith(" sim.")]
    return Finding(
        CRASH,
        f"BUG: unhandled exception in thread {event.thread.name}: {name}"
        + (f": {said}" if said else ""),
        (event.thread.name,),
        event.step,
        (Detail("Call Trace (module and function):", tuple(reversed(own or frames))),),
    )
