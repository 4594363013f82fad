"""One run: pending -> enabled -> pick -> apply -> record -> observe, one operation at a time.

An execution decides *what* happens; a host (`sim.hosts`) only resumes the thread that
:meth:`Execution.advance` names, through :meth:`Execution.resume`.  So every host produces the
same events from the same choices.

A step that commutes with everything (`ops.LOCAL`) is performed as soon as its thread reaches
it; the strategy is asked only where two or more threads could go on.

On a memory with a log (`sim.undo`) an execution can go back to any visible step, and on under other
choices: memory, detectors and threads are put back, coroutines are made anew when they are to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast, final

from sim import ops, revival
from sim.audit import audited, refuse_foreign
from sim.choosing import Picks, Selects, Strategy
from sim.errors import MisuseError, RcusimError
from sim.events import Detector, Event, Fault, Finding, Snapshot, Waiting
from sim.memory import Memory
from sim.ops import Op
from sim.stack import function_of
from sim.threads import ACTIVE, Body, Known, Spawn, Thread, ThreadTable

DEFAULT_MAX_STEPS: Final = 20_000


#: How an execution ended.
DONE: Final = "done"  # every thread ended
DEADLOCKED: Final = "deadlock"  # threads are left, none can take a step
STOPPED: Final = "finding"  # a fatal finding: what would follow means nothing
CUT: Final = "step-limit"  # the budget of steps ran out
REDUNDANT: Final = "redundant"  # the strategy has seen all that could follow
RUNNING: Final = "running"

Observer = Callable[[Event], None]


#: What to go back to: length of the log, number of the step, who took the last one, and lengths
#: of the lists in `Execution.followed`.
_Mark = tuple[int, int, Thread | None, int, int]


@final
class Execution:
    """One execution of a program under a strategy, watched by detectors.

    main       the main thread's function, or what it must run
    memory     the modelled memory (made before, so that static objects can be in it)
    strategy   decides every choice
    detectors  see every event (or those of their kinds), in this order
    observer   sees every event before the detectors do (records the trace)
    max_steps  budget of operations
    audit      whether to look for operations that are made but not awaited
    every_step whether steps of the kinds in `ops.LOCAL` are scheduling points, too (for tests)

    choices       the choices made so far: index into the enabled threads, or the value chosen
    choice_steps  the step that each choice decided
    findings      what the detectors reported, in order
    outcomes      values of the `outcome` notes, as (thread, value), in order
    state         RUNNING, or how it ended
    followed      instead of `choices`, under a strategy that selects: who took the steps (keys of
                  the threads), and the values chosen, each with the key of its thread
    on_start      called when the main thread stands at its first operation, None: nothing is
    """

    def __init__(
        self,
        main: Callable[[], Body],
        memory: Memory,
        strategy: Strategy,
        detectors: Sequence[Detector] = (),
        *,
        observer: Observer | None = None,
        max_steps: int = DEFAULT_MAX_STEPS,
        audit: bool = False,
        every_step: bool = False,
    ) -> None:
        self.memory: Final = memory
        self.threads: Final = ThreadTable()
        self.choices: Final[list[int]] = []
        self.choice_steps: Final[list[int]] = []
        self.findings: Final[list[Finding]] = []
        self.outcomes: Final[list[tuple[str, Any]]] = []
        self.state = RUNNING
        self.on_start: Callable[[], None] | None = None
        self.step = 0
        self._strategy: Final = strategy
        self._observer: Final = observer
        self._max_steps: Final = max_steps
        self._audit: Final = audit
        self._selects: Final = getattr(strategy, "select", None) and cast("Selects", strategy)
        self._log: Final = memory.log
        self._marks: Final[list[_Mark]] = []
        self.followed: Final[tuple[list[int], list[tuple[int, int]]]] = ([], [])
        asked = {ops.CHOOSE} if self._selects is not None else set()
        self._at_once: Final = frozenset() if every_step else ops.LOCAL - asked
        observers: list[Any] = [strategy] if hasattr(strategy, "observe") else []
        observers += detectors
        self._watchers: Final[list[list[Callable[[Event], Any]]]] = [
            [d.observe for d in observers if d.kinds is None or kind in d.kinds]
            for kind in range(len(ops.KIND_NAMES))
        ]
        self._alive: Final[list[Thread]] = []
        self._local: Final[list[Thread]] = []
        self._last: Thread | None = None
        self._main: Final = Spawn(main, (), "main", None, None)

    # -- for hosts -----------------------------------------------------------------------------

    def boot(self) -> Thread:
        """Make the main thread.  The host resumes it first."""
        self._alive.append(self.threads.start(self._main, None))
        return self._alive[0]

    def start(self) -> None:
        """The main thread has been resumed once: what exists now is the initial state."""
        if self.on_start is not None:
            self.on_start()

    def advance(self) -> tuple[Thread, Thread | None] | None:
        """Perform the next operation.

        Returns the thread to resume, and the thread that it has just forked, if any, which the
        host starts first; None when the execution is over.
        """
        while self.state is RUNNING:
            thread = self._next()
            if thread is None:
                break
            op = thread.pending
            assert op is not None
            thread.pending = None
            forked = self._perform(thread, op)
            if op.kind != ops.EXIT:
                return thread, forked
        if self._selects is not None:
            self._selects.ended(self.threads.all, fatal=self.state is STOPPED)
        return None

    def resume(self, thread: Thread) -> None:
        """Run `thread` to its next operation, which becomes its pending one.

        Raises MisuseError if it awaits something that is no operation, or drops one.
        """
        known = thread.ahead
        if known is not None:
            thread.at = known
            self._stands_at(thread, known.op)
            return
        ACTIVE.thread = thread
        try:
            coroutine = thread.coroutine
            if thread.stands is not thread.at:
                op = revival.revive(thread)
            elif self._audit:
                op = audited(thread, coroutine)
            else:
                op = coroutine.send(thread.result)  # type: ignore[union-attr]  # it is alive
        except StopIteration as stop:
            thread.coroutine = None
            op = Op(ops.EXIT, "exit", thread.key, 0, thread, stop.value)
        except RcusimError:
            raise
        except (Exception, SystemExit) as error:  # whatever model or workload raises: a finding
            refuse_foreign(thread, error)
            op = Op(ops.EXIT, "crash", thread.key, 0, thread, error)
        finally:
            ACTIVE.thread = None
        if op.__class__ is not Op:
            raise MisuseError(
                f"thread {thread.name} awaited {op!r}, which is no operation of rcusim: await "
                "only modelled functions inside a modelled thread"
            )
        if self._log is not None:
            revival.learn(thread, op)
            if thread.context is None or op.kind in ops.MEMORY:
                op.function = function_of(thread, op)  # while the coroutine stands there
        self._stands_at(thread, op)

    def _stands_at(self, thread: Thread, op: Op[Any]) -> None:
        """`op` is what `thread` does next."""
        thread.pending = op
        kind = op.kind
        if kind in self._at_once:
            self._local.append(thread)
        elif kind in ops.BLOCKING:
            thread.guarded = True
            self.threads.may_wait(thread)
            if kind == ops.SLEEP:
                self.memory.clock.arm(thread, op.operand)

    def rewind(self, steps: int) -> None:
        """Go back to where `steps` visible steps had been taken, and no more if that is now."""
        assert self._log is not None
        if steps < len(self._marks):
            mark, self.step, self._last, keys, values = self._marks[steps]
            self._log.rewind(mark)
            del self.followed[0][keys:], self.followed[1][values:]
            del self._marks[steps:]
        self.state = RUNNING
        self._local.clear()

    def close(self) -> None:
        """Abandon what is left of the threads.  Idempotent."""
        self.threads.close()

    # -- one step ------------------------------------------------------------------------------

    def _next(self) -> Thread | None:
        """The thread whose operation happens now; None ends the execution."""
        if self.step >= self._max_steps:
            self.state = CUT
            return None
        if self._local:
            return self._local.pop()
        if self._selects is not None:
            return self._selected(self._selects)
        enabled = self.enabled()
        if not enabled:
            self._finish()
            return None
        if len(enabled) == 1:
            self._last = enabled[0]
            return enabled[0]
        index = cast("Picks", self._strategy).pick(enabled, self._last)
        if index < 0:
            self.state = REDUNDANT
            return None
        self.choices.append(index)
        self.choice_steps.append(self.step)
        self._last = enabled[index]
        return enabled[index]

    def _selected(self, strategy: Selects) -> Thread | None:
        """The thread that the strategy selects."""
        thread = strategy.select(self._alive, self.able, self._last)
        if thread is None:
            if any(map(self.able, self._alive)):
                self.state = REDUNDANT
            else:
                self._finish()
            return None
        keys, values = self.followed
        if self._log is not None:
            mark = len(self._log.entries), self.step, self._last, len(keys), len(values)
            self._marks.append(mark)
        if thread.pending is not None and thread.pending.kind != ops.CHOOSE:
            keys.append(thread.key)
        self._last = thread
        if thread.context is not None and thread.stands is not thread.at:
            revival.stand(thread)
        return thread

    def able(self, thread: Thread) -> bool:
        """Whether the pending operation of `thread` can happen now."""
        op = thread.pending
        cpu = thread.cpu
        if op is None or (thread.guarded and not self.memory.ready(thread, op)):
            return False
        return cpu is None or cpu.holder in (None, thread) or op.kind in ops.OFF_CPU

    def enabled(self) -> list[Thread]:
        """Threads whose pending operation can happen now, in order of creation."""
        ready = self.memory.ready
        return [
            t
            for t in self._alive
            if (not t.guarded or ready(t, t.pending))  # type: ignore[arg-type]  # alive: has one
            and (
                t.cpu is None
                or t.cpu.holder is None
                or t.cpu.holder is t
                or t.pending.kind in ops.OFF_CPU  # type: ignore[union-attr]  # alive: has one
            )
        ]

    def _perform(self, thread: Thread, op: Op[Any]) -> Thread | None:
        """Apply one operation, record it, let the detectors see it.  Returns a forked thread."""
        memory, log, kind = self.memory, self._log, op.kind
        memory.step = self.step
        fault: Fault | None = None
        forked: Thread | None = None
        if kind == ops.EXIT:
            thread.result, thread.ended = None, True
            at = self._alive.index(thread)
            del self._alive[at]
            if log is not None:
                log.entries.append((_REVIVED, self._alive, at, thread))
        elif kind == ops.CHOOSE:
            thread.result = self._value(thread, op.operand)
        elif kind == ops.FORK:
            thread.result = forked = self.threads.start(op.operand, thread)
            self._alive.append(forked)
            if log is not None:
                revival.started(forked)
                log.call(_unfork, self.threads, self._alive, forked)
        else:
            thread.result = memory.apply(thread, op)
            fault = memory.fault
            if kind == ops.NOTE and op.name == "outcome":
                self.outcomes.append((thread.name, op.operand))
                if log is not None:
                    log.grown(self.outcomes)
        thread.guarded = False
        if log is not None:
            log.entries.append((_TAKE_BACK, thread, memory, thread.at))
            revival.remember(thread)
        self._record(Event(self.step, thread, op, thread.result, fault))
        self.step += 1
        return forked

    def _value(self, thread: Thread, n: int) -> int:
        if n == 1:
            return 0
        value = self._strategy.choose(thread, n)
        if self._selects is not None:
            self.followed[1].append((thread.key, value))
        self.choices.append(value)
        self.choice_steps.append(self.step)
        return value

    def _record(self, event: Event) -> None:
        if self._observer is not None:
            self._observer(event)
        for observe in self._watchers[event.op.kind]:
            found = observe(event)
            if found is None:
                continue
            for finding in found if isinstance(found, tuple) else (found,):
                self.findings.append(finding)
                if self._log is not None:
                    self._log.grown(self.findings)
                if finding.fatal:
                    self.state = STOPPED

    def _finish(self) -> None:
        """No thread can take a step: everything has ended, or what is left is stuck."""
        stuck = self._alive
        kind, name = (ops.DEADLOCK, "deadlock") if stuck else (ops.QUIESCENT, "quiescent")
        event = Event(self.step, self._last or self.threads.all[0], Op(kind, name), None, None)
        event.snapshot = Snapshot(
            tuple(Waiting(t, t.pending, self._waits_on(t)) for t in stuck if t.pending is not None),
            self.memory.live(),
            tuple(self.memory.roots),
        )
        self.state = DEADLOCKED if stuck else DONE
        self.step += 1
        self._record(event)

    def _waits_on(self, thread: Thread) -> tuple[Thread, ...]:
        """Which threads must act before `thread` can take its step, as far as that is known."""
        op = thread.pending
        assert op is not None
        if thread.guarded and not self.memory.ready(thread, op):
            if op.kind == ops.LOCK:
                return (op.target.value,)
            if op.kind == ops.JOIN:
                return (op.target,)
            if op.kind == ops.GP_END:
                waits_for = [s for s in op.operand.waits_for if s in op.target.open]
                named = [self.threads.named(section.thread) for section in waits_for]
                return tuple(found for found in named if found is not None)
            if op.kind != ops.CPU_HOLD:
                return ()
        holder = thread.cpu.holder if thread.cpu is not None else None
        return () if holder is None else (holder,)


def _unfork(table: ThreadTable, alive: list[Thread], forked: Thread) -> None:
    table.forget(forked)
    alive.pop()


def _revived(alive: list[Thread], index: int, thread: Thread) -> None:
    alive.insert(index, thread)
    thread.ended = False


def _take_back(thread: Thread, memory: Memory, at: Known) -> None:
    """The last step of `thread`, which was `at`, has not been taken: it is pending."""
    armed = thread.pending
    if armed is not None and armed.kind == ops.SLEEP:
        memory.clock.disarm(thread, armed.operand)
    thread.trail.pop()
    thread.at = at
    op = at.op
    thread.pending = op
    thread.guarded = op.kind in ops.BLOCKING
    if thread.context is not None and op.kind != ops.EXIT:  # that is to be what it was, too
        thread.stands = None
        at.forget()


_REVIVED: Final = _revived  # as in `sim.undo`
_TAKE_BACK: Final = _take_back
