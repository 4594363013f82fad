"""The properties of `dependent` and `LOCAL`.

Independent neighbours may change places: :func:`swap_counterexample` runs a program once under a
random schedule, with every step a scheduling point.  For each two adjacent steps of different
threads that are independent, it runs the program again with the two swapped and all else the
same: the second must have been able to go first, and every step must give the same result, leave
the same threads able to go on, and lead to the same end.  And no step may keep an independent
one, which could have gone instead of it, from going after it.

Performing the steps of `ops.LOCAL` at once loses no outcome: :func:`local_counterexample`.  (It
does if a thread waits while it holds a CPU; what is then lost is no outcome of a correct kernel.)
"""

from typing import Any

from sim import ops
from sim.events import Event
from sim.ops import Op
from sim.threads import Thread
from tests.programs.code import Program
from tests.programs.running import ENGINE, Run, Scripted, every_outcome, execute, view


def swap_counterexample(program: Program, seed: int) -> str:
    """Two steps that are independent and yet may not change places; empty: there are none."""
    script = Scripted(seed=seed)
    run = execute(program, script, every_step=True)
    for first, second in zip(run.events, run.events[1:], strict=False):
        if second.op.kind not in ENGINE and _independent(first, second.thread, second.op):
            problem = _problem(program, script, run, first, second)
            if problem:
                return f"{_told(first)}, then {_told(second)}: {problem}"
    return _disabled(run, script)


def _disabled(run: Run, script: Scripted) -> str:
    """A step that keeps an independent one from going; empty: there is none."""
    pending: dict[Thread, Op[Any]] = {}
    last = run.events[-1]
    if last.snapshot is not None:
        pending = {waiting.thread: waiting.op for waiting in last.snapshot.waiting}
    after: set[str] = set()
    for event in reversed(run.events):
        before = {event.thread.name, *script.enabled.get(event.step, ())}
        if event.op.kind in ENGINE:
            before = set()
        for thread, op in pending.items():
            if (
                thread.name in before - after
                and thread is not event.thread
                and _independent(event, thread, op)
            ):
                return f"{_told(event)} keeps {thread.name} from {op!r}"
        pending[event.thread] = event.op
        after = before
    return ""


def _independent(first: Event, thread: Thread, op: Op[Any]) -> bool:
    if first.thread is thread:
        return False
    if first.op.kind == ops.FORK and first.result is thread:
        return False  # cause and effect
    cpu = first.thread.cpu
    same_cpu = cpu is not None and cpu is thread.cpu
    return not ops.dependent(first.op, op, same_cpu=same_cpu)


def _problem(program: Program, script: Scripted, run: Run, first: Event, second: Event) -> str:
    """What differs when the two steps change places; empty: nothing."""
    at = first.step
    if second.thread.name not in script.enabled.get(at, ()):
        return "the first makes the second possible"
    names = run.schedule
    names[at : at + 2] = reversed(names[at : at + 2])
    swapped = Scripted(names, script.values)
    other = execute(program, swapped, every_step=True)
    expected = [*run.events[:at], second, first, *run.events[at + 2 :]]
    for event, wanted in zip(other.events, expected, strict=False):
        same_thread = event.thread.name == wanted.thread.name or wanted.op.kind in ENGINE
        if not same_thread or view(event) != view(wanted):
            return f"swapped, step {event.step} is {_told(event)}, not {_told(wanted)}"
    for step in script.enabled.keys() | swapped.enabled.keys():
        before, after = script.enabled.get(step, []), swapped.enabled.get(step, [])
        if step > at + 1 and sorted(before) != sorted(after):
            return f"swapped, {after} can go on at step {step}, not {before}"
    return "" if other.outcome == run.outcome else "swapped, the end differs"


def _told(event: Event) -> str:
    return f"{event.thread.name}: {event.op!r} = {view(event)[3:]}"


def local_counterexample(program: Program) -> str:
    """An outcome that performing `ops.LOCAL` steps at once loses or adds; empty: there is none."""
    at_once = every_outcome(program).outcomes
    one_by_one = every_outcome(program, every_step=True).outcomes
    if at_once == one_by_one:
        return ""
    return f"lost {one_by_one - at_once}, added {at_once - one_by_one}"
