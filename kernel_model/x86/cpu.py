"""arch/x86/include/asm/ptrace.h, arch/x86/entry/calling.h (v5.10): registers and kernel stack

A :class:`Machine` is what a thread executes text with: a program counter, the registers that
matter here, and a stack in memory that holds return addresses, saved registers and the frames of
programs. A function is entered by `call`, which pushes a return address; it may jump elsewhere
(a tail call); it ends by popping a return address. What it finds on the stack is what it uses.
The caller goes on as compiled code would: it relies on the return address that it has pushed and
on the registers that the ABI lets it keep, and a return that breaks this is reported.

Not modelled: flags, other registers; frames of C functions (they keep distinct values in the
callee-saved registers, and take up no stack).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from kernel_model.x86.text import Image, image_at
from sim.errors import MisuseError
from sim.macros import fetch, note
from sim.threads import current

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel

THREAD_SIZE: Final = 1 << 14  # bytes of a kernel stack
STACKS: Final = 0xFFFF_C900_0000_0000  # where x86-64 has them
STACK_LEFT: Final = 1024  # bytes: the largest frame of a program, and more
KERNEL_TEXT: Final = 0xFFFF_FFFF_8100_0000
_STACKS_MASK: Final = (1 << 45) - 1
_U64: Final = (1 << 64) - 1

CALLEE_SAVED: Final = ("rbx", "r13", "r14", "r15")
MAX_TAIL_CALLS: Final = 33  # that may succeed in one run of a program

_QUAD: Final = struct.Struct("<Q")


class Jump(NamedTuple):
    """A function ends by a jump: the arguments stay in their registers."""

    pc: int


class Corrupted(NamedTuple):
    """What is wrong with a frame: the operand of a note; `image` is the text that did it."""

    what: str
    image: Image


class Mismatch(NamedTuple):
    """A tail call from a program to one of another type: the operand of a note."""

    caller: Image
    callee: Image


@final
class Machine:
    """What a thread executes text with.

    pc     the program counter, as far as it matters; args: rdi, rsi, rdx, rcx, r8
    stack  the memory from `low` on; `high` is its end
    context     where the argument of the program that C code has called lies; `top`: and its frame
    tail_calls  names of the programs jumped to since C code called the first one
    count       of tail calls since then, on kernels that count them by reference
    level       of nested calls between functions of programs
    """

    __slots__ = (
        "args", "context", "count", "depth", "high", "kernel", "level", "low", "pc", "r13", "r14",
        "r15", "rax", "rbp", "rbx", "rsp", "stack", "tail_calls", "top",
    )  # fmt: skip

    def __init__(self, kernel: Kernel) -> None:
        self.kernel: Final = kernel
        self.low: Final = STACKS + ((current().key << 14) & _STACKS_MASK)
        self.high: Final = self.low + THREAD_SIZE
        self.stack: Final = bytearray(THREAD_SIZE)
        self.pc = 0
        self.args: tuple[Any, ...] = ()
        self.rax = self.rbx = self.r13 = self.r14 = self.r15 = 0
        self.rsp = self.rbp = self.high
        self.tail_calls: list[str] = []
        self.depth = 0
        self.count = self.level = 0
        self.context = (self.high, self.high)
        self.top = self.high

    # -- the stack -------------------------------------------------------------------------

    def read(self, addr: int) -> int:
        """The 8 bytes at an address of the stack; beyond it, zeros."""
        at = addr - self.low
        if not 0 <= at <= THREAD_SIZE - 8:
            return 0
        value: int = _QUAD.unpack_from(self.stack, at)[0]
        return value

    def write(self, addr: int, value: int) -> None:
        """Write 8 bytes at an address of the stack."""
        at = addr - self.low
        if 0 <= at <= THREAD_SIZE - 8:
            _QUAD.pack_into(self.stack, at, value & _U64)

    def push(self, value: int) -> None:
        self.rsp -= 8
        self.write(self.rsp, value)

    def pop(self) -> int:
        value = self.read(self.rsp)
        self.rsp += 8
        return value

    def saved(self) -> tuple[int, ...]:
        """The registers that a function must leave as they were."""
        return (self.rbx, self.r13, self.r14, self.r15, self.rbp, self.rsp)

    # -- control flow ----------------------------------------------------------------------

    async def _call(self, pc: int, return_to: int) -> int:
        """Call the function at `pc`: what it leaves in rax."""
        before = self.saved()
        if self.rsp - self.low < STACK_LEFT:
            await note("BUG", "stack guard page was hit")
        self.push(return_to)
        image = await self._execute(pc)
        changed = [
            f"{name} is {now:#x}, was {then:#x}"
            for name, now, then in zip(
                (*CALLEE_SAVED, "rbp", "rsp"), self.saved(), before, strict=True
            )
            if now != then
        ]
        if self.pc != return_to:
            await note("corrupted", Corrupted(f"return to {self.pc:#x}, which is no caller", image))
        elif changed:
            await note("corrupted", Corrupted(f"wrong registers: {', '.join(changed)}", image))
        return self.rax

    async def _execute(self, pc: int) -> Image:
        """Execute from `pc` on until something returns: the image that did."""
        while True:
            image = image_at(self.kernel, pc)
            if image is None:
                await fetch(None, pc, pc)
                raise AssertionError("a fetch from nowhere is fatal")
            entry = image.entries.get(pc - image.addr)
            if entry is None:
                await note("corrupted", Corrupted(f"execution at {pc:#x}, in no function", image))
                raise AssertionError("execution in the middle of nowhere is fatal")
            jump = await entry(self)
            if jump is None:
                return image
            pc = jump.pc

    async def _call_c(self, pc: int, site: str) -> int:
        """C code calls text with values of its own in the callee-saved registers."""
        outer = (self.rbx, self.r13, self.r14, self.r15, self.tail_calls, self.count, self.level)
        base = KERNEL_TEXT + (self.depth << 16)
        self.rbx, self.r13, self.r14, self.r15 = (base + at for at in (0xB, 0x13, 0x14, 0x15))
        self.tail_calls, self.count, self.level = [], 0, 1
        self.depth += 1
        result = await self._call(pc, base + sum(site.encode()))
        self.depth -= 1
        self.rbx, self.r13, self.r14, self.r15, self.tail_calls, self.count, self.level = outer
        return result

    async def _count_tail_call(self, name: str) -> None:
        """One more tail call has succeeded in this run."""
        self.tail_calls.append(name)
        if len(self.tail_calls) > MAX_TAIL_CALLS:
            await note("tail_call_limit", tuple(self.tail_calls))


def machine(kernel: Kernel) -> Machine:
    """The registers and the stack of the running thread."""
    ctx = current().context
    if ctx is None:
        raise MisuseError(f"thread {current().name} executes text: start it with `task(...)`")
    if ctx.machine is None:
        ctx.machine = Machine(kernel)
    found: Machine = ctx.machine
    return found
