"""Accesses to memory that is not there (or no longer), in the words of KASAN.

What a run witnesses is a finding.  An access that this run happened to make before the object
was freed, though nothing orders it before, is a :class:`Prediction`: a reason to search for the
run in which it comes after, and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from sim import ops
from sim.detectors.describe import call_trace, distinct, field_of, history, whereabouts
from sim.detectors.happens_before import HappensBefore
from sim.events import Detail, Event, Fault, Finding
from sim.stack import function_of

if TYPE_CHECKING:
    from sim.cells import Struct
    from sim.memory import Memory

INVALID_UNLOCK: Final = "invalid-unlock"


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """An access that is not ordered before the free of its object.

    object_label     the object
    kind             what the object is (its KIND)
    access_step      the step of the access; the victim has to be held back from there
    access_thread    the victim
    access_function  where it was, empty if stacks are not recorded
    free_step        the step at which the object was freed in this run
    free_thread      who freed it
    """

    object_label: str
    kind: str
    access_step: int
    access_thread: str
    access_function: str
    free_step: int
    free_thread: str


@final
class _Access:
    """The last access of one thread to one object."""

    __slots__ = ("function", "step", "thread", "time")

    def __init__(self, thread: str) -> None:
        self.thread: Final = thread
        self.time = 0
        self.step = 0
        self.function = ""


@final
class Lifetime:
    """Reports what memory found wrong with an access, and predicts uses after free.

    Text that is rewritten counts as freed for those who have fetched from it.

    predictions  filled as objects are freed: per object and thread the last access
    """

    kinds: frozenset[int] | None = ops.MEMORY | {ops.ALLOC, ops.WAIT}

    def __init__(
        self, order: HappensBefore, memory: Memory, predictions: list[Prediction] | None = None
    ) -> None:
        self.predictions: Final[list[Prediction]] = [] if predictions is None else predictions
        self._order: Final = order
        self._memory: Final = memory
        self._log: Final = memory.log
        # invariant: by address, the objects that have been allocated and not freed yet
        self._accesses: Final[dict[int, dict[int, _Access]]] = {}
        # by address of the place, who has fetched from it
        self._fetches: Final[dict[int, dict[int, _Access]]] = {}

    def observe(self, event: Event) -> Finding | None:
        if event.fault is not None:
            return self._finding(event, event.fault)
        op = event.op
        kind = op.kind
        if kind == ops.ALLOC:
            if self._log is not None:
                self._log.item(self._accesses, event.result.addr)
            self._accesses[event.result.addr] = {}
        elif kind == ops.FREE:
            self._freed(event)
        elif kind == ops.REWRITE:
            if self._log is not None:
                self._log.item(self._fetches, op.target.addr)
            self._gone(event, op.target.owner, self._fetches.pop(op.target.addr, {}))
        elif not self._accesses:
            return None  # all there is is static
        elif kind == ops.WAIT:
            for place in op.operand[1]:
                self._accessed(event, place.owner)
        elif op.target is not None:
            self._accessed(event, op.target.owner)
        else:
            self._accessed(event, self._memory.object_at(op.addr))
        return None

    # -- predictions ---------------------------------------------------------------------------

    def _accessed(self, event: Event, owner: Struct | None) -> None:
        accesses = self._accesses.get(owner.addr) if owner is not None else None
        if accesses is None:
            return  # static, and never freed
        self._access(event, accesses)
        if event.op.kind == ops.FETCH:
            addr = event.op.target.addr
            if self._log is not None and addr not in self._fetches:
                self._log.item(self._fetches, addr)
            self._access(event, self._fetches.setdefault(addr, {}))

    def _access(self, event: Event, accesses: dict[int, _Access]) -> None:
        thread = event.thread
        access = accesses.get(thread.index)
        if self._log is not None:
            self._log.item(accesses, thread.index)
            access = None
        if access is None:
            access = accesses[thread.index] = _Access(thread.name)
        access.time = self._order.time
        access.step = event.step
        if self._memory.stacks:
            access.function = function_of(thread, event.op)

    def _freed(self, event: Event) -> None:
        freed: Struct = event.op.target
        if self._log is not None:
            self._log.item(self._accesses, freed.addr)
        self._gone(event, freed, self._accesses.pop(freed.addr, {}))

    def _gone(self, event: Event, freed: Struct, accesses: dict[int, _Access]) -> None:
        """What was accessed there is there no more."""
        for index, access in accesses.items():
            if not self._order.ordered(index, access.time, event.thread):
                self.predictions.append(
                    Prediction(
                        freed.label,
                        freed.KIND,
                        access.step,
                        access.thread,
                        access.function,
                        event.step,
                        event.thread.name,
                    )
                )
                if self._log is not None:
                    self._log.grown(self.predictions)

    # -- findings ------------------------------------------------------------------------------

    def _finding(self, event: Event, fault: Fault) -> Finding:
        thread = event.thread
        function = _symbol(fault) or function_of(thread, event.op)
        if fault.kind == INVALID_UNLOCK:
            title = f"WARNING: bad unlock balance detected in {function}"
            first = f"{thread.name} releases a lock that it does not hold"
        else:
            title = f"BUG: KASAN: {fault.kind} in {function}"
            access = "Execute" if fault.execute else "Write" if fault.write else "Read"
            first = f"{access} of size {fault.size} at addr {fault.addr:016x} by task {thread.name}"
        details = [Detail(first, ()), call_trace(thread)]
        threads = [thread.name]
        if fault.object is not None:
            details += history(fault.object, self._memory)
            details += whereabouts(fault.addr, fault.object)
            freed = self._memory.freed.get(fault.object.addr)
            if freed is not None:
                threads.append(freed.thread)
        if event.op.kind != ops.FREE:
            details += field_of(event.op.target)
        return Finding(fault.kind, title, distinct(threads), event.step, tuple(details))


def _symbol(fault: Fault) -> str:
    """For a fetch of instructions: whose they are, or were."""
    if not fault.execute or fault.object is None:
        return ""
    symbol: Callable[[int], str] | None = getattr(fault.object, "symbol", None)
    return fault.object.label if symbol is None else symbol(fault.addr)
