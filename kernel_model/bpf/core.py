"""kernel/bpf/core.c (v5.10): running eBPF bytecode inside a modelled thread

`bpf_prog_run` awaits the coroutine that `kernel_model.bpf.translate` made of the program. A
`BpfRun` is what that coroutine and the helpers share: the stack frames and the context, which no
other thread can see, and where they lie in the simulated address space.

A program that does what the verifier would never let pass raises `BpfProgramError`: the thread
crashes, and the report names the program and the instruction. An access to memory that is not
there is no such error but a finding about the kernel, as anywhere in the model.

Not modelled: the JIT and its images; tail calls; statistics; the text of a program as memory, so
that running one which has been freed is noticed only where a helper that slept returns to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from kernel_model.bpf.disasm import print_bpf_insn
from kernel_model.bpf.insn import MAX_BPF_STACK, Insn, is_ld_imm64
from kernel_model.bpf.map import words
from kernel_model.bpf.translate import BpfFunc, Unset, is_kernel_call, registers_read, translate
from sim import ops
from sim.cells import Cell
from sim.macros import load_at, store_at
from sim.ops import Op
from sim.threads import current

if TYPE_CHECKING:
    from kernel_model.bpf.prog import BpfProg
    from kernel_model.kernel import Kernel

MAX_CALL_FRAMES: Final = 8
MAX_JUMPS_BACK: Final = 1_000_000  # of one run; v5.10 verifies no more steps than that

# Every thread has 16 KiB of its own where its programs run: a hole, the frames, the context.
_RUNS: Final = 0xFFFF_C900_0000_0000  # where x86-64 has its kernel stacks
_RUNS_MASK: Final = (1 << 45) - 1
_RUN_BITS: Final = 14
_HOLE: Final = 4096
_FRAMES: Final = MAX_CALL_FRAMES * MAX_BPF_STACK


class BpfProgramError(Exception):
    """A program did what no verified program can do; the message names the instruction."""


class BpfCall(NamedTuple):
    """A function of the kernel that programs can call."""

    name: str
    nargs: int
    function: Callable[..., Awaitable[int]]  # of the run and the arguments; the new r0


@final
@dataclass(frozen=True, slots=True)
class BpfText:
    """What runs of a program.

    name       as in stack traces: bpf_prog_lookup
    insns      the bytecode as the verifier rewrote it
    calls      the functions of the kernel that it calls, by the immediate of the call
    addresses  the 64-bit constants that the loader resolved, by index of the instruction
    derefs     the loads of pointers that order what depends on them, by index
    bpf_func   the coroutine function that all this was translated to
    """

    name: str
    insns: tuple[Insn, ...]
    calls: Mapping[int, BpfCall]
    addresses: Mapping[int, int]
    derefs: frozenset[int]
    bpf_func: BpfFunc


def bpf_prog_select_runtime(
    name: str,
    insns: Sequence[Insn],
    calls: Mapping[int, BpfCall],
    addresses: Mapping[int, int],
    derefs: frozenset[int] = frozenset(),
) -> BpfText:
    """Make a program ready to run; one bytecode is translated only once."""
    used = sorted({insn.imm for insn in insns if is_kernel_call(insn)})
    arity = tuple((imm, calls[imm].nargs) for imm in used if imm in calls)
    bpf_func = translate(tuple(insns), arity, derefs)
    return BpfText(f"bpf_prog_{name}", tuple(insns), calls, addresses, derefs, bpf_func)


def bpf_prog_run(
    kernel: Kernel, prog: BpfProg, ctx: bytes | bytearray = b""
) -> Coroutine[Op[Any], Any, int]:
    """Run the program on `ctx` (a bytearray is changed in place); the result is its u32.

    An `async def` but for the name: the coroutine is the program's own, so that the modelled
    stack has no frame between it and the caller.
    """
    run = BpfRun(kernel, prog, ctx)
    return prog.text.bpf_func(run, MAX_BPF_STACK, run.ctx_addr, Unset, Unset, Unset, Unset)


@final
class BpfRun:
    """One run of a program by the running thread.

    low, high  the addresses that are private to the run; the rest is modelled memory
    base       where the frames begin, the entry function's first; `stack` holds those in use
    ctx_addr   where the context begins
    at         index of the last call of a helper
    """

    __slots__ = (
        "_jumps_back",
        "addresses",
        "at",
        "base",
        "calls",
        "ctx",
        "ctx_addr",
        "high",
        "kernel",
        "low",
        "prog",
        "stack",
        "text",
    )

    def __init__(self, kernel: Kernel, prog: BpfProg, ctx: bytes | bytearray) -> None:
        self.kernel: Final = kernel
        self.prog: Final = prog
        self.text: Final = prog.text
        self.calls: Final = prog.text.calls
        self.addresses: Final = prog.text.addresses
        self.ctx: Final = ctx if isinstance(ctx, bytearray) else bytearray(ctx)
        self.low: Final = _RUNS + ((current().key << _RUN_BITS) & _RUNS_MASK)
        self.high: Final = self.low + (1 << _RUN_BITS)
        self.base: Final = self.low + _HOLE
        self.ctx_addr: Final = self.base + _FRAMES
        self.stack: Final = bytearray(MAX_BPF_STACK)
        self.at = 0
        self._jumps_back = 0

    # -- for helpers -----------------------------------------------------------------------

    async def read(self, addr: int, size: int) -> bytes:
        """The bytes at `addr`: the run's own, or read from memory word by word."""
        if self.low <= addr < self.high:
            region, offset = self._place(addr, size, self.at)
            return bytes(region[offset : offset + size])
        found = bytearray()
        for at, n in words(addr, addr + size):
            found += (await load_at(at, n)).to_bytes(n, "little")
        return bytes(found)

    async def write(self, addr: int, data: bytes) -> None:
        """Write bytes to `addr`: the run's own, or memory, word by word."""
        if self.low <= addr < self.high:
            region, offset = self._place(addr, len(data), self.at)
            region[offset : offset + len(data)] = data
            return
        for at, n in words(addr, addr + len(data)):
            await store_at(at, n, int.from_bytes(data[at - addr : at - addr + n], "little"))

    # -- for translated programs -----------------------------------------------------------

    def enter(self, fp: int) -> bytearray:
        """The frames, with that of a function called with the frame pointer at offset `fp`."""
        if fp > _FRAMES:
            raise BpfProgramError(f"{self.text.name}: more than {MAX_CALL_FRAMES} nested calls")
        if fp > len(self.stack):
            self.stack.extend(bytes(MAX_BPF_STACK))
        return self.stack

    def arguments(self, registers: Mapping[str, Any]) -> list[Any]:
        """r1 to r5 for a called function; what the caller has not initialised stays so."""
        return [registers.get(f"r{reg}", Unset) for reg in range(1, 6)]

    def load(self, addr: int, size: int, insn: int) -> int:
        region, offset = self._place(addr, size, insn)
        return int.from_bytes(region[offset : offset + size], "little")

    def load_dw(self, addr: int) -> Op[int]:
        """The load of 8 bytes that are not private.

        One instruction, and what the program does with a pointer depends on it: a pointer of the
        kernel's (a slot of an array of maps) is read as by rcu_dereference().
        """
        owner = self.kernel.memory.object_at(addr)
        place = None if owner is None else owner.lvalue(addr - owner.addr, 8)
        return load_at(addr, 8, ops.DEREF if isinstance(place, Cell) else ops.PLAIN)

    def store(self, addr: int, size: int, value: int, insn: int) -> None:
        region, offset = self._place(addr, size, insn)
        region[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def add(self, addr: int, size: int, value: int, insn: int) -> None:
        self.store(addr, size, self.load(addr, size, insn) + value, insn)

    def jump_back(self, insn: int) -> None:
        self._jumps_back += 1
        if self._jumps_back > MAX_JUMPS_BACK:
            raise self.error(insn, f"does not end: jumped back {MAX_JUMPS_BACK} times")

    def error(self, insn: int, problem: str) -> BpfProgramError:
        """What to raise when the instruction cannot be executed."""
        insns = self.text.insns
        second = insns[insn + 1] if insn + 1 < len(insns) else None
        listed = print_bpf_insn(insns[insn], second if is_ld_imm64(insns[insn]) else None)
        return BpfProgramError(f"{self.text.name}: insn {insn}: {listed}: {problem}")

    def uninitialised(self, error: UnboundLocalError, lines: Sequence[int]) -> Exception:
        """The error for a register that is read before it is written.

        `lines` has the instruction of every line of the translated function.
        """
        traceback = error.__traceback__
        if traceback is None or traceback.tb_next is not None:
            return error  # not in the program: a defect of a helper
        insn = lines[traceback.tb_lineno - 1]
        call = self.calls.get(self.text.insns[insn].imm)
        reads = list(registers_read(self.text.insns[insn]))
        if is_kernel_call(self.text.insns[insn]) and call is not None:
            reads = list(range(1, call.nargs + 1))
        known = traceback.tb_frame.f_locals
        unbound = next(f"r{reg}" for reg in reads if f"r{reg}" not in known)
        return self.error(insn, f"{unbound} is not initialised")

    def _place(self, addr: int, size: int, insn: int) -> tuple[bytearray, int]:
        """The region and the offset in it of private bytes."""
        if addr >= self.ctx_addr:
            region, offset, name = self.ctx, addr - self.ctx_addr, "context"
        else:
            region, offset, name = self.stack, addr - self.base, "stack"
        if 0 <= offset <= len(region) - size:
            return region, offset
        if name == "stack":
            offset -= len(region)
        raise self.error(insn, f"{size} bytes at offset {offset} are outside of its {name}")
