"""Visible operations: what a thread does that another thread could notice.

An :class:`Op` is plain data made *before* it happens.  The same object is a thread's pending
step, the recorded step, and the unit of the search; :func:`dependent` says which two steps
may not change places.  Every hand-off from modelled code to the engine goes through the one
``yield`` in :meth:`Op.__await__`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, Generic, TypeVar, final

from sim.errors import UsedWithoutAwait

T = TypeVar("T")

# Kinds of operation.  Plain integers, because they are compared at every step.
LOAD: Final = 0  # read target
STORE: Final = 1  # target := operand
XCHG: Final = 2  # target := operand; result: the old value
CMPXCHG: Final = 3  # operand (expected, new); result: the old value
RMW: Final = 4  # operand (function name, argument); result: the old value
LOCK: Final = 5  # waits until target is None, then target := this thread
TRYLOCK: Final = 6  # result: whether the lock was taken
UNLOCK: Final = 7  # target := None
FREE: Final = 8  # target: the object; its memory is poisoned
WAIT: Final = 9  # operand (predicate, cells): waits until predicate(values) holds
ALLOC: Final = 10  # operand (class, args, kwargs); result: the object
CHOOSE: Final = 11  # operand n; result: a value 0..n-1 that the strategy picks
FORK: Final = 12  # operand a Spawn; result: the new thread
JOIN: Final = 13  # target: the thread to wait for
EXIT: Final = 14  # the thread's coroutine has returned
FENCE: Final = 15
SECTION_BEGIN: Final = 16  # target: the domain; operand: the section
SECTION_END: Final = 17  # target: the domain; operand: the section
GP_START: Final = 18  # target: the domain; result: the grace period
GP_END: Final = 19  # target: the domain; operand: the grace period; waits for its sections
CPU_HOLD: Final = 20  # target: the CPU; waits until no other thread holds it
CPU_RELEASE: Final = 21  # target: the CPU
CLOCK: Final = 22  # result: the virtual time in ns
SLEEP: Final = 23  # operand: the deadline in ns; waits until it is the earliest one
NOTE: Final = 24  # operand: a remark for detectors and reports; no effect
QUIESCENT: Final = 25  # engine: every thread has ended
DEADLOCK: Final = 26  # engine: threads are left and none of them can take a step
FETCH: Final = 27  # a CPU reads instructions; operand: the program counter; result: what is there
REWRITE: Final = 28  # target := operand: text that nobody is to be executing any more
ARM: Final = 29  # a sleep of operand ns begins; result: the virtual time in ns

KIND_NAMES: Final = (
    "LOAD STORE XCHG CMPXCHG RMW LOCK TRYLOCK UNLOCK FREE WAIT ALLOC CHOOSE FORK JOIN EXIT FENCE"
    " SECTION_BEGIN SECTION_END GP_START GP_END CPU_HOLD CPU_RELEASE CLOCK SLEEP NOTE QUIESCENT"
    " DEADLOCK FETCH REWRITE ARM"
).split()

SPINS: Final = "cpu_relax"  # the name of a WAIT of a thread that does not sleep, but spins

# Orders: how an access takes part in synchronisation (not in the search).
PLAIN: Final = 0  # an ordinary C access
ONCE: Final = 1  # marked, orders nothing: READ_ONCE, WRITE_ONCE, atomic_inc
ACQUIRE: Final = 2
RELEASE: Final = 3
FULL: Final = 4  # value-returning read-modify-writes: acquire and release
DEREF: Final = 5  # rcu_dereference: orders what depends on the pointer

ORDER_NAMES: Final = ("plain", "once", "acquire", "release", "full", "deref")

#: Kinds that may have to wait before they can happen.
BLOCKING: Final = frozenset({LOCK, WAIT, JOIN, GP_END, CPU_HOLD, SLEEP})

#: Kinds that commute with every other thread's next step and can disable none of them, so
#: they are performed at once and are never a scheduling point.  (Ending a section or leaving
#: a CPU only ever *enables* others; nobody can observe that it has not happened yet.)
#: Not modelled: a thread that is kept off its CPU right before a fork, its end or the end of a
#: section, by one that holds the CPU and waits for just what this step would bring about.  Where no
#: holder waits, it goes on some time, and the step comes no later than whoever needs it could.
LOCAL: Final = frozenset(
    {ALLOC, CHOOSE, FORK, EXIT, FENCE, SECTION_END, CPU_RELEASE, NOTE, QUIESCENT, DEADLOCK}
)

#: Kinds that touch the bytes ``[addr, addr + size)``, and those among them that change them.
MEMORY: Final = frozenset(
    {LOAD, STORE, XCHG, CMPXCHG, RMW, LOCK, TRYLOCK, UNLOCK, FREE, FETCH, REWRITE}
)
WRITING: Final = MEMORY - {LOAD, FETCH}

#: Kinds that need no CPU: time goes on, and timers expire, on one that is held; nobody can tell
#: when a value was chosen.
OFF_CPU: Final = frozenset({SLEEP, CHOOSE})

_CPU: Final = frozenset({CPU_HOLD, CPU_RELEASE})
_TIME: Final = frozenset({CLOCK, ARM, SLEEP})


#: What a read-modify-write puts in place of the old value.
RMW_FUNCTIONS: Final[dict[str, Callable[[int, int], int]]] = {
    "add": lambda old, arg: old + arg,
    "and": lambda old, arg: old & arg,
    "or": lambda old, arg: old | arg,
    "xor": lambda old, arg: old ^ arg,
    "inc_not_zero": lambda old, arg: old + arg if old else old,
}


@final
class Audit:
    """Operations made while a thread ran, so that a forgotten ``await`` can be named."""

    def __init__(self) -> None:
        self.made: list[Op[Any]] | None = None


AUDIT: Final = Audit()


@final
class Op(Generic[T]):
    """One visible operation: frozen data, seen before it happens.

    kind     one of the constants of this module
    name     what the code calls it: ``READ_ONCE``, ``mutex_lock``, ``synchronize_rcu`` ...
    addr     simulated address of what it touches (0: nothing)
    size     bytes touched
    target   the lvalue, object, domain, CPU or thread that it is about
    operand  what it writes, expects or waits for; see the kinds
    order    one of the orders of this module
    function the modelled function that makes it, once it has been looked up (`sim.stack`)
    """

    __slots__ = ("addr", "function", "kind", "name", "operand", "order", "size", "target")

    kind: Final[int]
    name: Final[str]
    addr: Final[int]
    size: Final[int]
    target: Final[Any]
    operand: Final[Any]
    order: Final[int]
    function: str

    def __init__(
        self,
        kind: int,
        name: str,
        addr: int = 0,
        size: int = 0,
        target: Any = None,
        operand: Any = None,
        order: int = PLAIN,
    ) -> None:
        self.kind = kind
        self.name = name
        self.addr = addr
        self.size = size
        self.target = target
        self.operand = operand
        self.order = order
        self.function = ""
        if AUDIT.made is not None:
            AUDIT.made.append(self)

    def __await__(self) -> Generator[Op[T], T, T]:
        """Hand the operation to the execution; its result comes back when it has happened."""
        return (yield self)

    def __repr__(self) -> str:
        return f"<{KIND_NAMES[self.kind]} {self.name} {self.addr:#x}+{self.size}>"

    def __bool__(self) -> bool:
        """Refuse: what was meant is the operation's result."""
        raise UsedWithoutAwait(
            f"the operation {self.name} was used as a value: write `await {self.name}(...)`"
        )


def overlap(a: Op[Any], b: Op[Any]) -> bool:
    """Whether two memory operations touch a common byte."""
    return a.addr < b.addr + b.size and b.addr < a.addr + a.size


def _wait_reads(wait: Op[Any], other: Op[Any]) -> bool:
    return other.kind in WRITING and any(
        cell.addr < other.addr + other.size and other.addr < cell.addr + cell.size
        for cell in wait.operand[1]
    )


def dependent(a: Op[Any], b: Op[Any], *, same_cpu: bool = False) -> bool:
    """Whether two steps of different threads may not change places.

    The one source of truth for independence: if this is false, then performing a and b in
    either order gives the same results, the same memory and the same enabled threads.
    ``same_cpu`` says that both threads run on one shared CPU.

    Grace periods: a section's beginning and a grace period's start are dependent, for their
    order decides whether the grace period waits; a section's end enables the end of a grace
    period that waits for it; everything else between readers and grace periods commutes.

    Time: the timers are one thing, which is written by whoever arms one and by whoever wakes.
    (Arming one commutes with arming another, and with reading the clock.  But it may keep a sleeper
    from waking, and of steps that do, no two may be independent: `sim.strategies.dpor`.)
    """
    ka, kb = a.kind, b.kind
    if same_cpu and (ka in _CPU or kb in _CPU) and not {ka, kb} & OFF_CPU:
        return True
    if ka in MEMORY and kb in MEMORY:
        return (ka in WRITING or kb in WRITING) and overlap(a, b)
    if ka == WAIT:
        return _wait_reads(a, b)
    if kb == WAIT:
        return _wait_reads(b, a)
    if ka in _TIME and kb in _TIME:
        return ka != CLOCK or kb != CLOCK
    return _section_dependent(a, b) or _section_dependent(b, a) or _joins(a, b) or _joins(b, a)


def _section_dependent(a: Op[Any], b: Op[Any]) -> bool:
    if a.addr != b.addr:
        return False
    if a.kind == SECTION_BEGIN:
        return b.kind == GP_START
    if a.kind == SECTION_END and b.kind == GP_END:
        return a.operand in b.operand.waits_for
    return False


def _joins(a: Op[Any], b: Op[Any]) -> bool:
    return a.kind == EXIT and b.kind == JOIN and a.addr == b.addr
