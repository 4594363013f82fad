"""The modelled memory: `Memory.apply` is the only code that changes shared state.

Sequentially consistent: an operation takes effect when it is performed, for everybody.
Not modelled: store buffers (x86-TSO) and weaker memory models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast, final

from sortedcontainers import SortedDict

from sim import ops
from sim.cells import POISON, Lvalue, Struct, as_int
from sim.clock import Clock
from sim.cpu import Cpu
from sim.errors import InternalError, MisuseError
from sim.events import Fault, Stack
from sim.ops import Op
from sim.revival import static_again, static_made
from sim.sections import Domain, GracePeriod
from sim.stack import unwind
from sim.threads import ACTIVE, ARENA_BITS, TEXT_ARENA_BITS, Thread, arena, text_arena
from sim.undo import Log

S = TypeVar("S", bound=Struct)

STATIC_BASE: Final = 0xFFFF_FFFF_8200_0000  # kernel data of x86-64
REDZONE: Final = 64  # bytes between objects: an access there is out of bounds of the one before
_U64: Final = (1 << 64) - 1
_PAGE: Final = 4096


@final
class Site:
    """Where an object was allocated or freed: thread, step, and stack if stacks are recorded."""

    __slots__ = ("stack", "step", "thread")

    def __init__(self, thread: str, step: int, stack: Stack) -> None:
        self.thread = thread
        self.step = step
        self.stack = stack


@final
class Memory:
    """Objects by address, and the effect of every operation on them.

    stacks  whether call stacks are kept for allocations and frees
    log     where changes are written down that may be taken back, None: none will be
    fault   what was wrong with the operation applied last, None if nothing was
    step    number of the step being applied; set by the execution
    remarks what the machine says about itself before the first step; goes into a trace's header
    """

    def __init__(self, *, stacks: bool = False, log: Log | None = None) -> None:
        self.stacks = stacks
        self.log: Final = log
        self.clock = Clock()
        self.fault: Fault | None = None
        self.step = 0
        self.remarks: dict[str, str] = {}
        self.doubts: dict[str, None] = {}  # why a complete search would be no proof
        self.roots: list[Struct] = []
        self.allocated: dict[int, Site] = {}
        self._unfreed = 0  # objects allocated and not freed
        self.freed: dict[int, Site] = {}
        self._objects: SortedDict[int, Struct] = SortedDict()
        self._next_static = STATIC_BASE
        self._static_count: dict[str, int] = {}
        self._apply: dict[int, Callable[[Thread, Op[Any]], Any]] = {
            ops.FETCH: self._fetch,
            ops.REWRITE: self._store,
            ops.XCHG: self._xchg,
            ops.CMPXCHG: self._cmpxchg,
            ops.RMW: self._rmw,
            ops.LOCK: self._lock,
            ops.TRYLOCK: self._trylock,
            ops.UNLOCK: self._unlock,
            ops.FREE: self._free,
            ops.WAIT: self._wait,
            ops.ALLOC: self._alloc,
            ops.SECTION_BEGIN: self._section_begin,
            ops.SECTION_END: self._section_end,
            ops.GP_START: self._gp_start,
            ops.GP_END: _nothing,
            ops.CPU_HOLD: self._cpu_hold,
            ops.CPU_RELEASE: self._cpu_release,
            **dict.fromkeys((ops.CLOCK, ops.ARM), lambda _thread, _op: self.clock.now),
            ops.SLEEP: self._sleep,
            ops.JOIN: _nothing,
            ops.FENCE: _nothing,
            ops.NOTE: _nothing,
        }

    # -- objects ---------------------------------------------------------------------------

    def static(self, cls: type[S], *args: Any, **kwargs: Any) -> S:
        """Make an object that exists before the first thread runs and is never freed."""
        thread, log = ACTIVE.thread, self.log
        if log is not None:
            if thread is not None and (again := static_again(thread, cls)) is not None:
                return cast("S", again)
            log.item(self._static_count, cls.KIND)
            log.attribute(self, "_next_static")
        nth = self._static_count[cls.KIND] = self._static_count.get(cls.KIND, -1) + 1
        made = self._place(cls, f"{cls.KIND}.{nth}", self._next_static, args, kwargs)
        self._next_static = _after(made)
        static_made(thread, made, self.roots, log)
        return made

    def object_at(self, addr: int) -> Struct | None:
        """The object whose memory, or whose redzone behind it, holds `addr`."""
        at = self._objects.bisect_right(addr) - 1
        if at < 0:
            return None
        found: Struct = self._objects.peekitem(at)[1]
        return found if addr < found.addr + found.size + REDZONE else None

    def live(self) -> tuple[Struct, ...]:
        """Objects that have not been freed, in order of address."""
        if not self._unfreed:
            return tuple(self.roots)
        return tuple(made for made in self._objects.values() if not made.freed)

    def _place(
        self, cls: type[S], label: str, addr: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> S:
        made = cls.__new__(cls)
        made.place(label, addr)
        cls.__init__(made, *args, **kwargs)
        if self.log is not None:
            self.log.item(cast("dict[Any, Any]", self._objects), addr)
        self._objects[addr] = made
        return made

    def _alloc(self, thread: Thread, op: Op[Any]) -> Struct:
        cls, args, kwargs = op.operand
        if cls.TEXT:
            return self._alloc_text(thread, op)
        if not thread.next_addr:
            raise MisuseError(
                f"thread {thread.name} is too deep a descendant of the main thread (or one of "
                "too many siblings) to allocate memory: spawn it higher up"
            )
        label = f"{cls.KIND}#{thread.name}.{thread.allocations}"
        self._about_to_place(thread)
        made: Struct = self._place(cls, label, thread.next_addr, args, kwargs)
        thread.allocations += 1
        thread.next_addr = _after(made)
        if thread.next_addr > arena(thread) + (1 << ARENA_BITS):
            raise MisuseError(
                f"thread {thread.name} has allocated more than {1 << (ARENA_BITS - 20)} MiB: "
                "use smaller objects"
            )
        if self.log is not None:
            self.log.item(self.allocated, made.addr)
        self.allocated[made.addr] = self._site(thread)
        return made

    def _alloc_text(self, thread: Thread, op: Op[Any]) -> Struct:
        cls, args, kwargs = op.operand
        start = text_arena(thread)
        addr = thread.next_text or start
        label = f"{cls.KIND}#{thread.name}.{thread.allocations}"
        self._about_to_place(thread)
        made: Struct = self._place(cls, label, addr, args, kwargs)
        thread.allocations += 1
        thread.next_text = _after(made)
        if not start or thread.next_text > start + (1 << TEXT_ARENA_BITS):
            raise MisuseError(
                f"thread {thread.name} makes more text than {1 << (TEXT_ARENA_BITS - 10)} KiB, or "
                "is too deep a descendant of the main thread to have any: load programs higher up"
            )
        if self.log is not None:
            self.log.item(self.allocated, made.addr)
        self.allocated[made.addr] = self._site(thread)
        return made

    def _about_to_place(self, thread: Thread) -> None:
        if self.log is not None:
            for name in ("allocations", "next_addr", "next_text"):
                self.log.attribute(thread, name)
            self.log.attribute(self, "_unfreed")
        self._unfreed += 1

    def _free(self, thread: Thread, op: Op[Any]) -> None:
        freed: Struct = op.target
        if freed.freed:
            self.fault = Fault("double-free", True, freed.addr, freed.size, freed)
            return
        if self.log is not None:
            self.log.attribute(freed, "freed")
            self.log.item(self.freed, freed.addr)
            self.log.attribute(self, "_unfreed")
        freed.freed = True
        self._unfreed -= 1
        self.freed[freed.addr] = self._site(thread)

    def _site(self, thread: Thread) -> Site:
        return Site(thread.name, self.step, unwind(thread) if self.stacks else ())

    # -- steps -----------------------------------------------------------------------------

    def apply(self, thread: Thread, op: Op[Any]) -> Any:
        """Perform `op` for `thread` and return its result; sets `fault`."""
        self.fault = None
        if op.kind == ops.LOAD:
            return self._load(thread, op)
        if op.kind == ops.STORE:
            return self._store(thread, op)
        return self._apply[op.kind](thread, op)

    def ready(self, thread: Thread, op: Op[Any]) -> bool:
        """Whether `op`, of one of the kinds in `ops.BLOCKING`, can happen now."""
        kind = op.kind
        if kind == ops.LOCK:
            return op.target.value is None
        if kind == ops.GP_END:
            domain_open = op.target.open
            return not any(section in domain_open for section in op.operand.waits_for)
        if kind == ops.WAIT:
            predicate, cells = op.operand
            return bool(predicate(*[cell.value for cell in cells]))
        if kind == ops.JOIN:
            return cast("bool", op.target.ended)
        if kind == ops.CPU_HOLD:
            return op.target.holder is None or op.target.holder is thread
        if kind == ops.SLEEP:
            return self.clock.due(thread, op.operand)
        raise InternalError(f"{op} never waits")

    def _place_of(self, op: Op[Any]) -> Any:
        """The lvalue (or None) that an operation touches; sets `fault` if it may not."""
        place: Lvalue[Any] | None = op.target
        if place is None:
            return self._by_address(op)
        if place.owner.freed:
            self.fault = Fault(
                "use-after-free", op.kind in ops.WRITING, op.addr, op.size, place.owner
            )
        return place

    def _by_address(self, op: Op[Any]) -> Any:
        write = op.kind in ops.WRITING
        owner = self.object_at(op.addr)
        if owner is None:
            kind = "null-ptr-deref" if op.addr < _PAGE else "wild-memory-access"
            self.fault = Fault(kind, write, op.addr, op.size, None)
            return None
        place = owner.lvalue(op.addr - owner.addr, op.size)
        if owner.freed:
            self.fault = Fault("use-after-free", write, op.addr, op.size, owner)
        elif place is None:
            self.fault = Fault("slab-out-of-bounds", write, op.addr, op.size, owner)
        return place

    def _load(self, _thread: Thread, op: Op[Any]) -> Any:
        place = op.target
        if place is not None and not place.owner.freed:
            return place.value
        place = self._place_of(op)
        if op.target is not None:
            return place.value if place is not None else None
        if place is None or place.owner.freed:
            return int.from_bytes(bytes([POISON] * op.size), "little")
        return as_int(place.value) & ((1 << (8 * op.size)) - 1)

    def _fetch(self, _thread: Thread, op: Op[Any]) -> Any:
        place = op.target
        if place is None:
            self.fault = Fault("wild-execute", False, op.operand, op.size, None, execute=True)
            return None
        if place.owner.freed:
            kind = "use-after-free-execute"
            self.fault = Fault(kind, False, op.operand, op.size, place.owner, execute=True)
        return place.value

    def _store(self, _thread: Thread, op: Op[Any]) -> None:
        place = op.target
        if place is None or place.owner.freed:
            place = self._place_of(op)
        if place is not None:
            self._set(place, op.operand)

    def _xchg(self, _thread: Thread, op: Op[Any]) -> Any:
        place = self._place_of(op)
        if place is None:
            return 0
        old = place.value
        self._set(place, op.operand)
        return old

    def _cmpxchg(self, _thread: Thread, op: Op[Any]) -> Any:
        place = self._place_of(op)
        if place is None:
            return 0
        old = place.value
        expected, new = op.operand
        if old is expected or old == expected:
            self._set(place, new)
        return old

    def _rmw(self, _thread: Thread, op: Op[Any]) -> Any:
        place = self._place_of(op)
        if place is None:
            return 0
        old = place.value
        function, argument = op.operand
        self._set(place, ops.RMW_FUNCTIONS[function](old, argument))
        return old

    def _lock(self, thread: Thread, op: Op[Any]) -> None:
        place = self._place_of(op)
        if place is not None:
            self._set(place, thread)

    def _trylock(self, thread: Thread, op: Op[Any]) -> bool:
        place = self._place_of(op)
        if place is not None and place.value is None:
            self._set(place, thread)
            return True
        return False

    def _unlock(self, thread: Thread, op: Op[Any]) -> None:
        place = self._place_of(op)
        if place is None:
            return
        if place.value is not thread:
            self.fault = Fault("invalid-unlock", True, op.addr, op.size, place.owner)
        self._set(place, None)

    def _set(self, place: Any, value: Any) -> None:
        if self.log is not None:
            self.log.entries.append((_PUT_VALUE, place, place.value, None))
        place.value = value

    def _wait(self, _thread: Thread, op: Op[Any]) -> tuple[Any, ...]:
        for cell in op.operand[1]:
            if cell.owner.freed:
                self.fault = Fault("use-after-free", False, cell.addr, cell.size, cell.owner)
        return tuple(cell.value for cell in op.operand[1])

    # -- sections, grace periods, CPUs -------------------------------------------------------

    def _section_begin(self, _thread: Thread, op: Op[Any]) -> None:
        if self.log is not None:
            self.log.item(op.target.open, op.operand)
        op.target.open[op.operand] = None

    def _section_end(self, thread: Thread, op: Op[Any]) -> None:
        if op.operand not in op.target.open:
            raise MisuseError(f"{thread.name} ends {op.operand} of {op.target.name}: not open")
        if self.log is not None:
            self.log.item(op.target.open, op.operand)
        del op.target.open[op.operand]

    def _gp_start(self, _thread: Thread, op: Op[Any]) -> GracePeriod:
        domain: Domain = op.target
        return GracePeriod(tuple(sorted(domain.open)))

    def _cpu_hold(self, thread: Thread, op: Op[Any]) -> None:
        cpu: Cpu = op.target
        if self.log is not None:
            self.log.attribute(cpu, "holder")
        cpu.holder = thread

    def _cpu_release(self, thread: Thread, op: Op[Any]) -> None:
        cpu: Cpu = op.target
        if cpu.holder is not thread:
            raise MisuseError(f"{thread.name} releases CPU {cpu.index}, which it does not hold")
        if self.log is not None:
            self.log.attribute(cpu, "holder")
        cpu.holder = None

    def _sleep(self, thread: Thread, op: Op[Any]) -> int:
        clock = self.clock
        if self.log is not None:
            self.log.attribute(clock, "now")
            self.log.call(lambda *_: clock.arm(thread, op.operand), None, None, None)
        return clock.wake(thread, op.operand)


def _nothing(_thread: Thread, _op: Op[Any]) -> None:
    """The operation has no effect beyond having happened."""


def _put_value(place: Any, value: Any, _: None) -> None:
    place.value = value


_PUT_VALUE: Final = _put_value


def _after(made: Struct) -> int:
    """The first address behind `made` and its redzone, aligned to a cache line."""
    return (made.addr + made.size + REDZONE + 63) & ~63
