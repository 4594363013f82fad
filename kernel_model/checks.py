"""Linux-only detectors: what the kernel's own debug options would have warned of.

Each observes the operations and, while it does, the context of the thread that performs them.
Like the kernel's, they warn once of each thing in a run, and the run goes on.

Not modelled: the checks of memory and of data races, which know nothing of Linux
(`sim.detectors`); lockdep's subclasses, and what it knows of interrupts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, final

from kernel_model.checks_tail_call import tail_call_detectors
from kernel_model.checks_text import SiteHistory, text_detectors
from kernel_model.linux.task import Context
from sim import ops
from sim.cells import Cell
from sim.detectors.describe import call_trace
from sim.events import Detail, Detector, Event, Finding
from sim.sections import Section
from sim.stack import function_of, unwind
from sim.threads import Thread
from sim.undo import Log

SUSPICIOUS_RCU: Final = "suspicious-rcu-usage"
SLEEP_IN_ATOMIC: Final = "sleep-in-atomic"
UNBALANCED: Final = "unbalanced"
LOCK_ORDER: Final = "lock-order"
STALL: Final = "rcu-stall"

STALL_STEPS: Final = 2_000  # of a reader, while a grace period waits for it
NS_PER_S: Final = 1_000_000_000
STALL_NS: Final = 21 * NS_PER_S  # CONFIG_RCU_CPU_STALL_TIMEOUT


def linux_detectors() -> list[Detector]:
    """The checks, new for every execution."""
    history = SiteHistory()
    return [
        SuspiciousRcu(),
        SleepInAtomic(),
        Unbalanced(),
        LockOrder(),
        Stall(),
        history,
        *text_detectors(history),
        *tail_call_detectors(history),
    ]


class _Warns:
    """Says a thing only once.

    log     where changes that decide findings are written down, for executions that go back
    doubts  where to note why a complete search would be no proof (`Memory.doubts`)
    """

    log: Log | None = None
    doubts: dict[str, None] | None = None

    def __init__(self) -> None:
        self._said: Final[dict[str, None]] = {}

    def warn(
        self, event: Event, kind: str, title: str, details: Iterable[Detail] = ()
    ) -> Finding | None:
        """A finding about the thread that has done the step, with what it is doing."""
        if title in self._said:
            return None
        if self.log is not None:
            self.log.item(self._said, title)
        self._said[title] = None
        thread = event.thread
        told = (*details, _state(thread), call_trace(thread))
        return Finding(kind, title, (thread.name,), event.step, told, fatal=False)


@final
class SuspiciousRcu(_Warns):
    """A pointer read outside its readers; waiting for a flavour inside its own reader."""

    kinds: frozenset[int] | None = frozenset({ops.LOAD, ops.GP_START})

    def observe(self, event: Event) -> Finding | None:
        """Look at rcu_dereference() and at the starts of grace periods."""
        op = event.op
        if op.kind == ops.GP_START:
            return self._waits_in_reader(event)
        if (
            op.operand is None
            or op.order != ops.DEREF
            or any(_is_reader(event.thread, name) for name in op.operand)
        ):
            return None
        where = function_of(event.thread, op)
        needed = " or ".join(op.operand)
        return self.warn(
            event,
            SUSPICIOUS_RCU,
            f"WARNING: suspicious RCU usage: suspicious {op.name}() usage in {where}",
            (Detail(f"{op.target.label} may be read inside a reader of {needed}", ()),),
        )

    def _waits_in_reader(self, event: Event) -> Finding | None:
        name = event.op.name
        flavour = event.op.target.name
        if name.startswith("call_") or not _is_reader(event.thread, flavour):
            return None
        section = {"rcu_tasks_trace": "RCU Tasks Trace"}.get(flavour, "RCU")
        return self.warn(
            event,
            SUSPICIOUS_RCU,
            f"WARNING: suspicious RCU usage: Illegal {name}() in {section} "
            "read-side critical section",
        )


@final
class SleepInAtomic(_Warns):
    """Something that sleeps, or may, where sleeping is forbidden."""

    kinds: frozenset[int] | None = frozenset({ops.NOTE})

    def observe(self, event: Event) -> Finding | None:
        """Look at might_sleep() and at voluntary context switches."""
        name = event.op.name
        ctx: Context | None = event.thread.context
        if name not in ("might_sleep", "might_fault", "schedule") or ctx is None:
            return None
        if not ctx.atomic and ctx.rcu_nesting == 0:
            return None
        where = " in ".join(str(frame) for frame in unwind(event.thread)[:2])
        if not ctx.atomic and ctx.kernel.preempt == "none":
            title = (
                "WARNING: suspicious RCU usage: Illegal context switch in RCU read-side "
                f"critical section at {where}"
            )
            return self.warn(event, SUSPICIOUS_RCU, title)
        if name != "schedule":
            title = f"BUG: sleeping function called from invalid context at {where}"
        elif ctx.atomic:
            title = f"BUG: scheduling while atomic at {where}"
        else:
            title = (
                "WARNING: Voluntary context switch within RCU read-side critical section "
                f"at {where}"
            )
        return self.warn(event, SLEEP_IN_ATOMIC, title)


@final
class Unbalanced(_Warns):
    """A thread leaves the kernel with something that it should have given back."""

    kinds: frozenset[int] | None = frozenset({ops.NOTE})

    def observe(self, event: Event) -> Finding | None:
        """Look at threads that have just left the kernel."""
        if event.op.name != "leave_kernel":
            return None
        ctx: Context = event.thread.context
        kept = ", ".join(_held(ctx))
        if not kept:
            return None
        if ctx.kind == "kworker":
            title = f"BUG: workqueue leaked lock or atomic: {kept}"
        else:
            title = f"WARNING: lock held when leaving the kernel: {kept}"
        return self.warn(event, UNBALANCED, title)


@final
class LockOrder(_Warns):
    """Locks whose classes have been taken in orders that could make a deadlock, as lockdep does.

    _after  by class of a lock held: the classes taken meanwhile, and where that was first seen
    """

    kinds: frozenset[int] | None = frozenset({ops.LOCK, ops.TRYLOCK})

    def __init__(self) -> None:
        super().__init__()
        self._after: Final[dict[str, dict[str, str]]] = {}

    def observe(self, event: Event) -> Finding | None:
        """Look at a lock taken while others are held (an attempt to take it waits for nobody)."""
        op, thread = event.op, event.thread
        ctx: Context | None = thread.context
        if ctx is None or not ctx.locks or op.name.endswith("trylock"):
            return None
        taken = lock_class(op.target)
        for held in map(lock_class, ctx.locks):
            if held == taken:
                return self._recursive(event, taken)
            seen = self._after.setdefault(held, {})
            if taken not in seen:
                if self.log is not None:
                    self.log.item(seen, taken)
                seen[taken] = f" {held} -> {taken}: {thread.name} in {function_of(thread, op)}"
                circle = self._path(taken, held)
                if circle:
                    return self._circular(event, circle)
        return None

    def _recursive(self, event: Event, taken: str) -> Finding | None:
        title = f"WARNING: possible recursive locking detected: {taken}"
        return self.warn(event, LOCK_ORDER, title)

    def _circular(self, event: Event, circle: list[str]) -> Finding | None:
        order = " -> ".join([*circle, circle[0]])
        links = zip(circle, [*circle[1:], circle[0]], strict=True)
        seen = tuple(self._after[held][taken] for held, taken in links)
        title = f"WARNING: possible circular locking dependency detected: {order}"
        return self.warn(event, LOCK_ORDER, title, (Detail("the existing dependencies:", seen),))

    def _path(self, start: str, end: str) -> list[str]:
        """A shortest way along `_after` from `start` to `end`; empty if there is none."""
        paths = [[start]]
        reached = {start}
        for path in paths:
            if path[-1] == end:
                return path
            for after in self._after.get(path[-1], {}):
                if after not in reached:
                    reached.add(after)
                    paths.append([*path, after])
        return []


@final
@dataclass(frozen=True)
class _Awaited:
    """A section that a grace period waits for.

    since  the time at which the first such grace period started
    steps  what its thread has done since
    """

    flavour: str
    since: int
    steps: int = 0


@final
class Stall(_Warns):
    """A reader that a grace period waits for and that does not come to its end.

    The steps, and the time, between the start of the grace period and the end of the reader depend
    on the execution, not on its class.  So a reader that takes so many steps in all, and an
    execution that takes so long, is noted (`Memory.doubts`): not all starts have been tried.
    """

    kinds: frozenset[int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._now = 0
        self._begun: Final[dict[Section, int]] = {}  # how many steps the thread had done
        self._done: Final[dict[Thread, int]] = {}  # so far, where nobody goes back
        self._awaited: Final[dict[Section, _Awaited]] = {}

    def observe(self, event: Event) -> Finding | None:
        """Look at everything: it is a step of a reader, or time passes."""
        op = event.op
        if self.log is None:
            self._done[event.thread] = self._done.get(event.thread, 0) + 1
        if op.kind == ops.GP_START:
            self._await(event)
        elif op.kind == ops.SECTION_BEGIN:
            if self.log is not None:
                self.log.item(self._begun, op.operand)
            self._begun[op.operand] = self._steps_of(event.thread)
        elif op.kind == ops.SECTION_END:
            if self._steps_of(event.thread) - self._begun[op.operand] > STALL_STEPS:
                self._doubt(f"a reader took more than {STALL_STEPS:,} steps")
            self._about_to_change(op.operand)
            self._awaited.pop(op.operand, None)
        elif op.kind in (ops.SLEEP, ops.ARM, ops.CLOCK):
            if self.log is not None:
                self.log.attribute(self, "_now")
            self._now = event.result
            if self._now > STALL_NS:
                self._doubt(f"more than {STALL_NS // NS_PER_S} s passed")
        for section, known in self._awaited.items():
            awaited = known
            if section.thread == event.thread.name:
                self._about_to_change(section)
                awaited = self._awaited[section] = replace(known, steps=known.steps + 1)
            if awaited.steps > STALL_STEPS or self._now - awaited.since > STALL_NS:
                self._about_to_change(section)
                del self._awaited[section]
                return self._stalled(event, section, awaited)
        return None

    def _steps_of(self, thread: Thread) -> int:
        return len(thread.trail) if self.log is not None else self._done[thread]

    def _doubt(self, why: str) -> None:
        if self.doubts is not None:
            told = f"{why}, and not every start of a grace period was tried, which it may stall"
            self.doubts[told] = None

    def _await(self, event: Event) -> None:
        domain = event.op.target.name
        if event.thread.context is None or domain.endswith("_callbacks"):
            return
        preemptible = event.thread.context.kernel.preempt == "full"
        flavour = domain if domain != "rcu" else "rcu_preempt" if preemptible else "rcu_sched"
        for section in event.result.waits_for:
            if section not in self._awaited:
                self._about_to_change(section)
                self._awaited[section] = _Awaited(flavour, self._now)

    def _about_to_change(self, section: Section) -> None:
        if self.log is not None:
            self.log.item(self._awaited, section)

    def _stalled(self, event: Event, section: Section, awaited: _Awaited) -> Finding | None:
        waited = (
            f"a reader of task {section.thread} is still open after {awaited.steps} steps of it "
            f"and {(self._now - awaited.since) // 1_000_000} ms"
        )
        return self.warn(
            event,
            STALL,
            f"rcu: INFO: {awaited.flavour} detected stalls: task {section.thread}",
            (Detail(waited, ()),),
        )


def _is_reader(thread: Thread, flavour: str) -> bool:
    """Whether the thread is inside an explicit reader of the flavour."""
    ctx: Context | None = thread.context
    if ctx is None:
        return False
    if flavour == "rcu":
        return ctx.rcu_nesting > 0
    if flavour == "rcu_sched":
        return ctx.atomic
    if flavour == "rcu_bh":
        return ctx.bh_disabled > 0 or ctx.irqs_disabled > 0
    return flavour == "rcu_tasks_trace" and ctx.trace_nesting > 0


def _held(ctx: Context) -> list[str]:
    """Locks by class, and regions by the name of what opens them."""
    depths = {
        "preempt_disable": ctx.preempt_count,
        "local_irq_save": ctx.irqs_disabled,
        "local_bh_disable": ctx.bh_disabled,
        "rcu_read_lock": ctx.rcu_nesting,
        "rcu_read_lock_trace": ctx.trace_nesting,
    }
    return [*map(lock_class, ctx.locks), *(name for name, depth in depths.items() if depth)]


def lock_class(place: Cell[Thread | None]) -> str:
    """What lockdep would call the lock: the kind of its object, and the field."""
    return f"{place.owner.KIND}{place.owner.field_name(place)}"


def _state(thread: Thread) -> Detail:
    """What the thread holds, and which of its counters are not 0."""
    ctx: Context | None = thread.context
    held = [] if ctx is None else _held(ctx)
    count = f"{len(held)} lock{'s' * (len(held) != 1)}" if held else "no locks"
    lines = tuple(f" #{at}: {name}" for at, name in enumerate(held))
    return Detail(f"{count} held by {thread.name}:", lines)
