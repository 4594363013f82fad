"""include/linux/bpf_verifier.h (v5.10): what the verifier knows at one point of a path

Not modelled: ranges and known bits of scalars (one is a known constant, a value about which the
kernel knows nothing either, or one that is not tracked); offsets of pointers that are not constant
(such a pointer is not checked); references, packets, sockets, BTF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, final

from kernel_model.bpf.check import subprogs
from kernel_model.bpf.insn import BPF_REG_FP, MAX_BPF_REG, Insn
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_EXT
from kernel_model.bpf.translate import is_bpf_call
from kernel_model.linux.errno import EACCES

SLOT: Final = 8  # bytes of a stack slot, which can hold a register


class Refused(Exception):
    """The program is refused: what bpf_check() returns, and the lines of its log."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno: Final = errno
        self.message: Final = message


class TargetFacts(NamedTuple):
    """What verification asks about a program that another one is to be attached to.

    func_info   whether BTF describes its functions
    functions   how many it has
    unreliable  numbers of those whose arguments are not as BTF describes them
    """

    prog_type: int
    expected_attach_type: int
    func_info: bool
    functions: int
    unreliable: frozenset[int]


class ProgFacts(NamedTuple):
    """What verification asks about a program, apart from its instructions.

    attach_to  the kernel function that it is to be attached to, for types that name one
    target     the program that it is to be attached to, `attach_btf_id`: the function of that
    saved_dst  type and attach type of the program that it was loaded for; 0: it was for none
    func_info  whether BTF describes its functions
    tail_call_subprogs  whether a program with several functions may have tail calls
    exact_key  whether the key of a direct tail call is known to be that of a slot
    """

    prog_type: int
    expected_attach_type: int
    attach_to: str
    sleepable: bool
    func_info: bool = True
    tail_call_subprogs: bool = True
    exact_key: bool = True
    attach_btf_id: int = 0
    target: TargetFacts | None = None
    saved_dst: tuple[int, int] = (0, 0)

    @property
    def ops_type(self) -> int:
        """The type whose helpers and context it has: an extension has those of its target."""
        if self.prog_type == BPF_PROG_TYPE_EXT and self.target is not None:
            return self.target.prog_type
        return self.prog_type


class MapFacts(NamedTuple):
    """All that verification asks about a map, or about the template of an outer map.

    map_index  position in `used_maps` (of the outer map, if this is a template)
    lookup, update, delete  names of the functions of its type
    inlined  what its type replaces a look-up by; an errno, or 0 if it inlines none
    unpriv   whether its creator is not trusted to leave speculation alone
    """

    map_index: int
    map_type: int
    key_size: int
    value_size: int
    map_flags: int
    spin_lock_off: int | None
    lookup: str
    update: str
    delete: str
    inlined: tuple[Insn, ...] | int
    inner: MapFacts | None
    max_entries: int = 0
    unpriv: bool = False


class FunctionFacts(NamedTuple):
    """A function of a rewritten program: the instructions `start` to `end - 1`.

    stack_depth  bytes of stack that it uses
    callee_saved  those of r6 to r9 that it names
    tail_call_reachable  whether it has a tail call, or calls a function of which that is true
    """

    start: int
    end: int
    stack_depth: int
    callee_saved: tuple[int, ...]
    has_tail_call: bool
    tail_call_reachable: bool


class TailCallSite(NamedTuple):
    """What is known of a tail call: its map and its key, if they are the same on every path.

    unpriv  whether on some path the map's creator is not trusted
    """

    map: MapFacts | None
    key: int | None
    unpriv: bool = False


@final
class Env:
    """struct bpf_verifier_env: what is given, and what the walk finds out

    insn_idx, insn_processed  where it is, and how many instructions it has looked at
    callees      which functions a function calls, each by its first instruction
    map_of_call  the map that a call of a helper is about, by instruction; None: more than one
    stack_depth  bytes of stack that a function uses, by its first instruction
    tail_calls   by instruction
    reachable    functions from which a tail call can be reached, by first instruction
    """

    def __init__(
        self, insns: tuple[Insn, ...], prog: ProgFacts, maps: tuple[MapFacts, ...]
    ) -> None:
        self.insns: Final = insns
        self.prog: Final = prog
        self.maps: Final = maps
        self.callees: Final = {
            function.start: tuple(
                index + insns[index].imm + 1
                for index in range(function.start, function.end)
                if is_bpf_call(insns[index])
            )
            for function in subprogs(insns)
        }
        self.insn_idx = 0
        self.insn_processed = 0
        self.map_of_call: Final[dict[int, MapFacts | None]] = {}
        self.stack_depth: Final[dict[int, int]] = {}
        self.tail_calls: Final[dict[int, TailCallSite]] = {}
        self.functions: Final = subprogs(insns)
        self.reachable: Final[dict[int, None]] = {}


class Kind(Enum):
    """enum bpf_reg_type, by the names of `reg_type_str`"""

    NOT_INIT = "?"
    SCALAR = "inv"
    CTX = "ctx"
    MAP_PTR = "map_ptr"
    MAP_VALUE = "map_value"
    MAP_VALUE_OR_NULL = "map_value_or_null"
    STACK = "fp"

    @property
    def is_pointer(self) -> bool:
        return self not in (Kind.NOT_INIT, Kind.SCALAR)


class Reg(NamedTuple):
    """struct bpf_reg_state

    off      of a pointer: its constant offset, None: not constant
    value    of a scalar: the constant that it is, as an unsigned number, None: not known
    opaque   of a scalar: it comes from where the kernel cannot know anything about it
    id       of a pointer that may be NULL, or into a value with a lock: which look-up it is from
    frame    of a pointer to the stack: whose
    """

    kind: Kind
    off: int | None = 0
    value: int | None = None
    opaque: bool = False
    map: MapFacts | None = None
    id: int = 0
    frame: int = 0

    @property
    def is_null(self) -> bool:
        """register_is_null()"""
        return self.kind is Kind.SCALAR and self.value == 0


NOT_INIT: Final = Reg(Kind.NOT_INIT)
UNTRACKED: Final = Reg(Kind.SCALAR)
OPAQUE: Final = Reg(Kind.SCALAR, opaque=True)


def constant(value: int) -> Reg:
    return Reg(Kind.SCALAR, value=value & 0xFFFF_FFFF_FFFF_FFFF)


@final
@dataclass
class Frame:
    """struct bpf_func_state

    start, callsite  where the function begins, and the instruction that called it
    regs             r0 to r10
    written          bit n: the byte n below the frame pointer, counted from 0, is initialised
    spilled          registers on the stack, by the number of the 8-byte slot below the pointer
    """

    start: int
    callsite: int
    regs: list[Reg]
    written: int = 0
    spilled: dict[int, Reg] = field(default_factory=dict)

    def copy(self) -> Frame:
        return Frame(self.start, self.callsite, self.regs.copy(), self.written, self.spilled.copy())


@final
class State:
    """struct bpf_verifier_state

    frames  of the functions that are active, the entry function's first
    lock    `id` of the value whose bpf_spin_lock is held, 0: none
    """

    def __init__(self, frames: list[Frame], lock: int = 0) -> None:
        self.frames = frames
        self.lock = lock

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    def copy(self) -> State:
        return State([frame.copy() for frame in self.frames], self.lock)

    def key(self) -> object:
        """Equal for states in which the same things are known."""
        frames = tuple(
            (f.start, f.callsite, tuple(f.regs), f.written, tuple(sorted(f.spilled.items())))
            for f in self.frames
        )
        return frames, self.lock

    def call(self, start: int, callsite: int, regs: list[Reg]) -> None:
        """Enter a function: `regs` has r1 to r5."""
        fp = Reg(Kind.STACK, frame=len(self.frames))
        unset = [NOT_INIT] * (MAX_BPF_REG - 2 - len(regs))
        self.frames.append(Frame(start, callsite, [NOT_INIT, *regs, *unset, fp]))

    def new_id(self) -> int:
        """The smallest number that is no register's `id`, so that loops come back to old states."""
        taken = {reg.id for reg in self.all_regs()} | {self.lock}
        return next(n for n in range(1, len(taken) + 2) if n not in taken)

    def all_regs(self) -> Iterator[Reg]:
        for frame in self.frames:
            yield from frame.regs
            yield from frame.spilled.values()

    def replace(self, id: int, new: Reg) -> None:
        """Every register from the look-up `id` becomes `new`, and keeps its offset."""
        for frame in self.frames:
            for reg, old in enumerate(frame.regs):
                if old.id == id:
                    frame.regs[reg] = _with_offset(new, old)
            for slot, old in frame.spilled.items():
                if old.id == id:
                    frame.spilled[slot] = _with_offset(new, old)

    def forget_opaque(self) -> None:
        """A comparison tells the kernel something about scalars that is not tracked here."""
        self._change(lambda reg: UNTRACKED if reg.opaque else reg)

    def widen(self) -> None:
        """Give up the numbers, of which a loop can go through any amount."""
        self._change(_without_numbers)

    def _change(self, change: Callable[[Reg], Reg]) -> None:
        for frame in self.frames:
            frame.regs[:BPF_REG_FP] = [change(reg) for reg in frame.regs[:BPF_REG_FP]]
            frame.spilled = {slot: change(reg) for slot, reg in frame.spilled.items()}


def _without_numbers(reg: Reg) -> Reg:
    if reg.kind is Kind.SCALAR:
        return UNTRACKED
    return reg._replace(off=None) if reg.kind in (Kind.STACK, Kind.MAP_VALUE) else reg


def check_reg_arg(state: State, regno: int) -> Reg:
    """What a register holds that is read."""
    reg = state.frame.regs[regno]
    if reg.kind is Kind.NOT_INIT:
        raise Refused(EACCES, f"R{regno} !read_ok")
    return reg


def _with_offset(new: Reg, old: Reg) -> Reg:
    return new._replace(off=old.off) if new.kind is Kind.MAP_VALUE else new
