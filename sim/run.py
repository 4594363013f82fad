"""One run of a program: boot, detectors, host.  What explore, replay and tests all do."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final, final

from sim import ops
from sim.choosing import Strategy
from sim.detectors import Prediction, standard_detectors
from sim.errors import RcusimError
from sim.events import Detector, Event
from sim.execution import DEFAULT_MAX_STEPS, Execution, Observer
from sim.hosts import direct, trio_host
from sim.memory import Memory
from sim.strategies.bounded import Bounded
from sim.strategies.dpor import Dpor
from sim.undo import Log
from sim.workload import Program

Host = Callable[[Execution], None]

_GIVEN: Final = frozenset({ops.STORE, ops.XCHG, ops.CMPXCHG, ops.RMW, ops.NOTE, ops.CHOOSE})
_PLAIN: Final = (int, str, bytes, tuple, type(None))  # of the same repr in every run

COLLECT: Final = 256  # executions that go back, between two looks for cyclic garbage

HOSTS: Final[dict[str, Host]] = {"direct": direct.run, "trio": trio_host.run_blocking}


@final
class Run:
    """An execution that has ended, and what its detectors predict about others."""

    __slots__ = ("execution", "predictions")

    def __init__(self, execution: Execution, predictions: tuple[Prediction, ...]) -> None:
        self.execution: Final = execution
        self.predictions: Final = predictions

    def choices_before(self, step: int) -> tuple[int, ...]:
        """The choices made before the operation of `step` was picked."""
        made = sum(1 for at in self.execution.choice_steps if at < step)
        return tuple(self.execution.choices[:made])


def build(
    program: Program,
    strategy: Strategy,
    *,
    log: Log | None = None,
    observer: Observer | None = None,
    stacks: bool = False,
    audit: bool = False,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> tuple[Execution, list[Prediction]]:
    """An execution of `program` that has not begun, and what will be predicted in it.

    log     where changes are written down, for executions that go back
    stacks  keep call stacks of allocations, frees and accesses (for reports; slower)
    audit   refuse operations that are made but not awaited (slower)
    """
    memory = Memory(stacks=stacks, log=log)
    main = program.main(memory)
    predictions: list[Prediction] = []
    execution = Execution(
        main,
        memory,
        strategy,
        [*standard_detectors(memory, predictions), *_own_detectors(program, memory)],
        observer=observer,
        max_steps=max_steps,
        audit=audit,
    )
    return execution, predictions


def run_once(
    program: Program,
    strategy: Strategy,
    *,
    host: Host = direct.run,
    observer: Observer | None = None,
    stacks: bool = False,
    audit: bool = False,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> Run:
    """Run `program` once, to its end.  Raises MisuseError and InternalError of the run."""
    execution, predictions = build(
        program, strategy, observer=observer, stacks=stacks, audit=audit, max_steps=max_steps
    )
    host(execution)
    return Run(execution, tuple(predictions))


def _own_detectors(program: Program, memory: Memory) -> list[Detector]:
    """The model's own detectors; those that have a `log` write their changes down there."""
    detectors = program.machine.detectors()
    for detector in detectors:
        if hasattr(detector, "log"):
            detector.log = memory.log
        if hasattr(detector, "doubts"):
            detector.doubts = memory.doubts
    return detectors


@final
class Rewound:
    """The executions of a search, each run only from where it leaves the one before.

    They make hardly any garbage that reference counts do not find, and the collector would look
    at all that is kept again and again.  So it is off until :meth:`close`, and every COLLECT
    executions it looks at what has come since, once.
    """

    def __init__(self, program: Program, strategy: Dpor | Bounded, max_steps: int) -> None:
        self._program: Final = program
        self._strategy: Final = strategy
        self._max_steps: Final = max_steps
        self._execution: Execution | None = None
        self._predictions: list[Prediction] = []
        self._runs = 0
        self._collects: Final = gc.isenabled()
        strategy.rewinds = True

    def next(self) -> Run:
        """The execution that the strategy has begun.

        What threads share outside of cells (a list of the workload's, say) is not put back.  Where
        that is noticed, this execution and those after it are run from their start.
        """
        if self._strategy.rewinds:
            try:
                return self._gone_on()
            except RcusimError:
                if self._strategy.kept == 0:
                    raise  # it did begin at the start
                self._strategy.begin_anew()
                self._collect_again()
        return run_once(self._program, self._strategy, max_steps=self._max_steps)

    def _gone_on(self) -> Run:
        gc.disable()
        self._runs += 1
        if self._runs % COLLECT == 0:
            gc.collect(1)
        kept = self._strategy.kept
        if kept and self._execution is not None:
            self._execution.rewind(kept - 1)  # the start of the main thread counts as a step
        else:
            self._abandon()
            self._execution, self._predictions = build(
                self._program, self._strategy, log=Log(), max_steps=self._max_steps
            )
            direct.begin(self._execution)
        direct.go_on(self._execution)
        return Run(self._execution, tuple(self._predictions))

    def close(self) -> None:
        """Abandon the threads.  Idempotent."""
        self._abandon()
        self._collect_again()

    def _abandon(self) -> None:
        if self._execution is not None:
            self._execution.close()

    def _collect_again(self) -> None:
        if self._collects:
            gc.enable()


Fingerprint = tuple[str, str, int, str]


def fingerprint(event: Event) -> Fingerprint:
    """What must be the same whenever the same choices are made: thread, operation, values."""
    op = event.op
    given = op.operand if op.kind in _GIVEN and isinstance(op.operand, _PLAIN) else ""
    return event.thread.name, op.name, op.addr, f"{event.result!r} {given!r}"
