"""kernel/bpf/core.c (v5.10): running eBPF bytecode inside a modelled thread

`bpf_prog_run` calls the image of a program as C code does. What runs there is the coroutine that
`kernel_model.bpf.translate` made of the function. A `BpfRun` is what that coroutine, the helpers
and the JIT's sequences share: the registers and the kernel stack of the thread, which no other
thread can see, and where they lie in the simulated address space.

A program that does what the verifier would never let pass raises `BpfProgramError`: the thread
crashes, and the report names the program and the instruction. An access to memory that is not
there is no such error but a finding about the kernel, as anywhere in the model.

Not modelled: the interpreter; statistics.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from kernel_model.bpf.disasm import print_bpf_insn
from kernel_model.bpf.insn import Insn, is_ld_imm64
from kernel_model.bpf.jit_run import Unset
from kernel_model.bpf.map import words
from kernel_model.bpf.translate import BpfFunc, is_kernel_call, registers_read, translate
from kernel_model.x86.cpu import CALLEE_SAVED, Machine, machine
from sim import ops
from sim.cells import Cell, as_int
from sim.macros import load, load_at, store_at
from sim.ops import Op

if TYPE_CHECKING:
    from kernel_model.bpf.jit import BpfImage
    from kernel_model.bpf.prog import BpfProg
    from kernel_model.kernel import Kernel
    from kernel_model.x86.text import Image

MAX_JUMPS_BACK: Final = 1_000_000  # of one run; v5.10 verifies no more steps than that


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
    functions  the coroutine functions that all this was translated to, by first instruction
    images     the functions' images, by first instruction
    prog_type  of the program, 0: nobody has said
    """

    name: str
    insns: tuple[Insn, ...]
    calls: Mapping[int, BpfCall]
    addresses: Mapping[int, int]
    derefs: frozenset[int]
    functions: Mapping[int, BpfFunc]
    images: dict[int, Image]
    prog_type: int = 0


def translated(
    name: str,
    insns: Sequence[Insn],
    calls: Mapping[int, BpfCall],
    addresses: Mapping[int, int],
    derefs: frozenset[int] = frozenset(),
    prog_type: int = 0,
) -> BpfText:
    """A program ready to be laid out; one bytecode is translated only once."""
    used = sorted({insn.imm for insn in insns if is_kernel_call(insn)})
    arity = tuple((imm, calls[imm].nargs) for imm in used if imm in calls)
    functions = translate(tuple(insns), arity, derefs)
    symbol = f"bpf_prog_{name}"
    return BpfText(symbol, tuple(insns), calls, addresses, derefs, functions, {}, prog_type)


async def _bpf_prog_run(
    kernel: Kernel, prog: BpfProg, ctx: bytes | bytearray = b"", site: str = "bpf_prog_run"
) -> int:
    """Run the program on `ctx` (a bytearray is changed in place); the result is its u32.

    The context lies on the kernel stack of the caller, a C function called `site`.
    """
    m = machine(kernel)
    outer, rsp = m.context, m.rsp
    size = len(ctx)
    m.rsp -= (size + 7) & ~7
    start = m.rsp - m.low
    m.stack[start : start + size] = ctx
    m.context = (m.rsp, m.rsp + size)
    image = await load(prog.bpf_func)
    m.args = (m.rsp, Unset, Unset, Unset, Unset)
    m.top = m.rsp - 16  # the frame pointer of the entry function
    result = await m._call_c(as_int(image), site)
    if isinstance(ctx, bytearray):
        ctx[:] = m.stack[start : start + size]
    m.rsp, m.context = rsp, outer
    return result & 0xFFFF_FFFF


bpf_prog_run: Final = _bpf_prog_run  # by its other name: no frame in modelled stacks


@final
class BpfRun:
    """One run of a function of a program by the running thread.

    low, high  the kernel stack, private to the thread; the rest is modelled memory
    at         index of the last call of a helper
    """

    __slots__ = (
        "_jumps_back",
        "addresses",
        "at",
        "base",
        "calls",
        "ctx",
        "ctx_end",
        "high",
        "image",
        "kernel",
        "low",
        "machine",
        "stack",
        "text",
        "top",
    )

    def __init__(self, kernel: Kernel, image: BpfImage, m: Machine) -> None:
        self.kernel: Final = kernel
        self.image: Final = image
        self.text: Final = image.text
        self.calls: Final = image.text.calls
        self.addresses: Final = image.text.addresses
        self.machine: Final = m
        self.low: Final = m.low
        self.base: Final = m.low
        self.high: Final = m.high
        self.stack: Final = m.stack
        self.ctx, self.ctx_end = m.context
        self.top: Final = m.top
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

    def save(self, registers: Mapping[str, Any]) -> tuple[int, ...]:
        """r6 to r9 as far as they are initialised go where a called function finds them."""
        m = self.machine
        kept = tuple(reg for reg in (6, 7, 8, 9) if f"r{reg}" in registers)
        for reg in kept:
            setattr(m, CALLEE_SAVED[reg - 6], registers[f"r{reg}"])
        return kept

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
        if addr >= self.ctx:
            name, start, end = "context", self.ctx, self.ctx_end
        else:
            name, start, end = "stack", self.machine.rbp - self.image.layout.sd, self.top
        if start <= addr <= end - size:
            return self.stack, addr - self.low
        offset = addr - (start if name == "context" else end)
        raise self.error(insn, f"{size} bytes at offset {offset} are outside of its {name}")
