"""What model code awaits: the kernel's memory macros, locks in the raw, and `choose`.

Each function returns an operation; nothing happens until it is awaited.  Plain accesses are
steps too, so that a trace shows the failing access itself.  Unless it says otherwise a macro
raises nothing: an access to freed memory is a finding, not an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, TypeVar

from sim import ops
from sim.cells import Cell, Lvalue, Struct
from sim.cpu import Cpu
from sim.errors import MisuseError
from sim.ops import Op
from sim.sections import Domain, GracePeriod, Section
from sim.threads import Thread, current

T = TypeVar("T")
S = TypeVar("S", bound=Struct)


def load(place: Lvalue[T]) -> Op[T]:
    """A plain read: ``x`` in C."""
    return Op(ops.LOAD, "load", place.addr, place.size, place)


def store(place: Lvalue[T], value: T) -> Op[None]:
    """A plain write: ``x = value`` in C."""
    return Op(ops.STORE, "store", place.addr, place.size, place, value)


def READ_ONCE(place: Lvalue[T]) -> Op[T]:
    """A marked read that orders nothing."""
    return Op(ops.LOAD, "READ_ONCE", place.addr, place.size, place, None, ops.ONCE)


def WRITE_ONCE(place: Lvalue[T], value: T) -> Op[None]:
    """A marked write that orders nothing."""
    return Op(ops.STORE, "WRITE_ONCE", place.addr, place.size, place, value, ops.ONCE)


def smp_load_acquire(place: Lvalue[T]) -> Op[T]:
    """A marked read ordered before all that follows it."""
    return Op(ops.LOAD, "smp_load_acquire", place.addr, place.size, place, None, ops.ACQUIRE)


def smp_store_release(place: Lvalue[T], value: T) -> Op[None]:
    """A marked write ordered after all that precedes it."""
    return Op(ops.STORE, "smp_store_release", place.addr, place.size, place, value, ops.RELEASE)


def fetch(place: Lvalue[T] | None, addr: int, pc: int) -> Op[T]:
    """A CPU reads the instruction at `pc` of text that others may change or free.

    place  what the CPU sees there, None: there is no text; addr: where `place` is, or `pc`
    """
    return Op(ops.FETCH, "fetch", addr, 1, place, pc, ops.ACQUIRE)


def rewrite(place: Lvalue[T], value: T, name: str) -> Op[None]:
    """Put other instructions where nobody is to be executing any more."""
    return Op(ops.REWRITE, name, place.addr, place.size, place, value, ops.RELEASE)


def load_at(addr: int, size: int, order: int = ops.PLAIN) -> Op[int]:
    """A read of `size` bytes at a simulated address; pointers read as addresses."""
    return Op(ops.LOAD, "load", addr, size, None, None, order)


def store_at(addr: int, size: int, value: int) -> Op[None]:
    """A plain write of `size` bytes at a simulated address."""
    return Op(ops.STORE, "store", addr, size, None, value)


def rmw_at(addr: int, size: int, function: str, argument: int, name: str) -> Op[int]:
    """A relaxed atomic read-modify-write at a simulated address; the result is the old value."""
    return Op(ops.RMW, name, addr, size, None, (function, argument), ops.ONCE)


def xchg(place: Lvalue[T], value: T) -> Op[T]:
    """Swap, fully ordered; the result is the old value."""
    return Op(ops.XCHG, "xchg", place.addr, place.size, place, value, ops.FULL)


def cmpxchg(place: Lvalue[T], expected: T, new: T) -> Op[T]:
    """Write `new` if the value is `expected`, fully ordered; the result is the old value."""
    return Op(ops.CMPXCHG, "cmpxchg", place.addr, place.size, place, (expected, new), ops.FULL)


def rmw(
    place: Lvalue[int], function: str, argument: int, name: str, order: int = ops.FULL
) -> Op[int]:
    """An atomic read-modify-write of `ops.RMW_FUNCTIONS`; the result is the old value."""
    return Op(ops.RMW, name, place.addr, place.size, place, (function, argument), order)


def atomic_inc(place: Cell[int]) -> Op[int]:
    """Add 1; orders nothing (the kernel's void form)."""
    return rmw(place, "add", 1, "atomic_inc", ops.ONCE)


def atomic_dec(place: Cell[int]) -> Op[int]:
    """Subtract 1; orders nothing (the kernel's void form)."""
    return rmw(place, "add", -1, "atomic_dec", ops.ONCE)


def atomic_fetch_add(place: Cell[int], value: int) -> Op[int]:
    """Add `value`, fully ordered; the result is the old value."""
    return rmw(place, "add", value, "atomic_fetch_add")


async def atomic_add_return(place: Cell[int], value: int) -> int:
    """Add `value`, fully ordered; the result is the new value."""
    return await rmw(place, "add", value, "atomic_add_return") + value


async def atomic_dec_and_test(place: Cell[int]) -> bool:
    """Subtract 1, fully ordered; whether the value is 0 now."""
    return await rmw(place, "add", -1, "atomic_dec_and_test") == 1


async def atomic_inc_not_zero(place: Cell[int]) -> bool:
    """Add 1 unless the value is 0, fully ordered; whether it was added."""
    return await rmw(place, "inc_not_zero", 1, "atomic_inc_not_zero") != 0


def smp_mb() -> Op[None]:
    """A full barrier."""
    return Op(ops.FENCE, "smp_mb", order=ops.FULL)


def smp_rmb() -> Op[None]:
    """A read barrier: an acquire fence."""
    return Op(ops.FENCE, "smp_rmb", order=ops.ACQUIRE)


def smp_wmb() -> Op[None]:
    """A write barrier: a release fence."""
    return Op(ops.FENCE, "smp_wmb", order=ops.RELEASE)


def choose(n: int, name: str = "choose") -> Op[int]:
    """A value 0..n-1 that the strategy picks: a failure, a fault, a random number."""
    if n < 1:
        raise MisuseError(f"choose({n}): there must be at least 1 value to choose from")
    return Op(ops.CHOOSE, name, operand=n)


def wait_until(
    predicate: Callable[..., bool], *cells: Lvalue[Any], name: str = "wait_until"
) -> Op[tuple[Any, ...]]:
    """Wait until ``predicate(*values of the cells)``; the result is the values then seen.

    The predicate must depend on nothing but its arguments and variables as they are now.
    """
    if not cells:
        raise MisuseError("wait_until(predicate): name the cells that the predicate reads")
    first = cells[0]
    waits = (_as_it_is(predicate), cells)
    return Op(ops.WAIT, name, first.addr, first.size, None, waits, ops.ACQUIRE)


def _as_it_is(predicate: Callable[..., bool]) -> Callable[..., bool]:
    """`predicate` with the variables around it as they are now: the wait may be looked at again."""
    if not isinstance(predicate, FunctionType) or predicate.__closure__ is None:
        return predicate
    try:
        now = tuple(CellType(cell.cell_contents) for cell in predicate.__closure__)
    except ValueError:  # one of them is not assigned yet
        return predicate
    kept = FunctionType(
        predicate.__code__, predicate.__globals__, predicate.__name__, predicate.__defaults__, now
    )
    kept.__kwdefaults__ = predicate.__kwdefaults__
    return kept


def cpu_relax(place: Lvalue[T], seen: T, *others: Any) -> Op[tuple[Any, ...]]:
    """In a loop that spins until `place` changes: go round again when it is no longer `seen`.

    ``while (x := await READ_ONCE(flag)) == 0: await cpu_relax(flag, x)``

    A loop that looks at several places names them all: ``cpu_relax(flag, x, turn, t)``.
    A time round that reads what the one before read changes nothing, so it is left out: Jonsson,
    Lång, Sagonas, "Awaiting for Godot", FMCAD 2022.  That needs a loop which goes on only because
    of what it read from there, and which has done nothing else since that others could notice
    (write, take a lock, choose a value).  If a value is overwritten and comes back before this
    thread looks, the loop would not have noticed either.  Where nobody is left who could change
    the places (or they have been freed), this is a livelock.  Orders nothing.
    """
    if others:
        if len(others) % 2:
            raise MisuseError("cpu_relax(place, seen, place, seen ...): a `seen` is missing")
        return _relax((place, *others[::2]), _any_other_than((seen, *others[1::2])))
    return _relax((place,), lambda value: value is not seen and value != seen)


def _relax(cells: tuple[Any, ...], predicate: Callable[..., bool]) -> Op[tuple[Any, ...]]:
    first = cells[0]
    return Op(ops.WAIT, ops.SPINS, first.addr, first.size, None, (predicate, cells), ops.ONCE)


def _any_other_than(seen: tuple[Any, ...]) -> Callable[..., bool]:
    def predicate(*values: Any) -> bool:
        return any(a is not b and a != b for a, b in zip(values, seen, strict=True))

    return predicate


def alloc(cls: type[S], *args: Any, **kwargs: Any) -> Op[S]:
    """Allocate an object: ``await alloc(BpfMap, max_entries=3)``."""
    return Op(ops.ALLOC, "kmalloc", operand=(cls, args, kwargs))


def free(target: Struct, name: str = "kfree") -> Op[None]:
    """Free an object; any access after it is a use-after-free."""
    return Op(ops.FREE, name, target.addr, target.size or 1, target)  # frees of one object meet


def join(thread: Thread) -> Op[None]:
    """Wait until `thread` has ended."""
    if not isinstance(thread, Thread):
        raise MisuseError(f"join({thread!r}): give it a thread, as in `join(await spawn(...))`")
    return Op(ops.JOIN, "join", thread.key, 0, thread)


def lock(place: Cell[Thread | None], name: str = "lock") -> Op[None]:
    """Wait until the cell is None, then put this thread into it.  Not recursive."""
    return Op(ops.LOCK, name, place.addr, place.size, place, None, ops.ACQUIRE)


def trylock(place: Cell[Thread | None], name: str = "trylock") -> Op[bool]:
    """Take the lock if it is free; whether it was taken."""
    return Op(ops.TRYLOCK, name, place.addr, place.size, place, None, ops.ACQUIRE)


def unlock(place: Cell[Thread | None], name: str = "unlock") -> Op[None]:
    """Release a lock that this thread holds."""
    return Op(ops.UNLOCK, name, place.addr, place.size, place, None, ops.RELEASE)


def new_section() -> Section:
    """The name of the next reader section of the running thread."""
    thread = current()
    thread.sections += 1
    return Section(thread.name, thread.sections - 1)


def section_begin(domain: Domain, section: Section, name: str) -> Op[None]:
    """Begin a reader section of `domain`."""
    return Op(ops.SECTION_BEGIN, name, domain.addr, 0, domain, section)


def section_end(domain: Domain, section: Section, name: str) -> Op[None]:
    """End a reader section that is open."""
    return Op(ops.SECTION_END, name, domain.addr, 0, domain, section)


def gp_start(domain: Domain, name: str) -> Op[GracePeriod]:
    """Start a grace period: it will wait for every section of `domain` that is open now."""
    return Op(ops.GP_START, name, domain.addr, 0, domain)


def gp_end(domain: Domain, grace_period: GracePeriod, name: str) -> Op[None]:
    """Wait until every section that the grace period waits for has ended."""
    return Op(ops.GP_END, name, domain.addr, 0, domain, grace_period)


def cpu_hold(cpu: Cpu, name: str) -> Op[None]:
    """Keep every other thread off the CPU from now on."""
    return Op(ops.CPU_HOLD, name, cpu.addr, 0, cpu)


def cpu_release(cpu: Cpu, name: str) -> Op[None]:
    """Let the other threads of the CPU run again."""
    return Op(ops.CPU_RELEASE, name, cpu.addr, 0, cpu)


def note(name: str, value: Any = None) -> Op[None]:
    """A remark for detectors and reports; no thread can notice it."""
    return Op(ops.NOTE, name, operand=value)


def outcome(value: Any) -> Op[None]:
    """Add `value` to what this execution is said to have resulted in; a list counts as a tuple."""
    return note("outcome", tuple(value) if isinstance(value, list) else value)
