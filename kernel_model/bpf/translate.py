"""kernel/bpf/core.c, ___bpf_prog_run (v5.10): bytecode becomes one Python coroutine per function

Registers are local variables, so that an uninitialised one is an unbound one and costs nothing to
detect. The code of a function is a list of blocks in the order of the program; `pc` says where to
go on, and each block begins with `if pc <= its first instruction:`, so that a jump forwards skips
what is in between. A jump backwards starts the list again. This program

    0: (61) r0 = *(u32 *)(r1 +0)
    1: (15) if r0 == 0x0 goto pc+1
    2: (07) r0 += -1
    3: (95) exit

becomes (what follows `try:`)

    if pc <= 0:
        a = r1
        if low <= a < high: r0 = run.load(a, 4, 0)
        else: modelled_frame.at = 0; r0 = await load_at(a, 4)
        if r0 == 0: pc = 3
    if pc <= 2:
        r0 = r0 + -1 & 0xffffffffffffffff
    if pc <= 3:
        return r0

Stack and context are private to the run (no operation); every other access is a visible
operation by address. What only an unverified program does (an unknown opcode, a jump out of its
function) becomes a line that raises when it is reached.

Not modelled: LD_ABS and LD_IND (packet access).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from kernel_model.bpf.alu import ALU, JMP, TRUNCATES_SRC, U32, U64
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU,
    BPF_ALU64,
    BPF_AND,
    BPF_B,
    BPF_CALL,
    BPF_CLASS,
    BPF_DW,
    BPF_END,
    BPF_EXIT,
    BPF_H,
    BPF_JA,
    BPF_JEQ,
    BPF_JGE,
    BPF_JGT,
    BPF_JLE,
    BPF_JLT,
    BPF_JMP,
    BPF_JMP32,
    BPF_JNE,
    BPF_JSET,
    BPF_LD,
    BPF_LDX,
    BPF_LSH,
    BPF_MODE,
    BPF_MOV,
    BPF_MUL,
    BPF_OP,
    BPF_OR,
    BPF_PSEUDO_CALL,
    BPF_REG_FP,
    BPF_SIZE,
    BPF_SRC,
    BPF_ST,
    BPF_STX,
    BPF_SUB,
    BPF_TAIL_CALL,
    BPF_W,
    BPF_X,
    BPF_XADD,
    BPF_XOR,
    MAX_BPF_REG,
    MAX_BPF_STACK,
    OPCODES,
    Insn,
    is_ld_imm64,
)
from kernel_model.bpf.jit_run import Position, Unset, _call_bpf, _call_c, _tail_call
from kernel_model.x86.cpu import Jump
from sim.macros import load_at, rmw_at, store_at

BYTES: Final = {BPF_B: 1, BPF_H: 2, BPF_W: 4, BPF_DW: 8}

#: What a function of a program is called with: the run, the offset of its frame pointer in the
#: kernel stack, and the five arguments.  It returns r0, or a jump to another program.
BpfFunc = Callable[..., Coroutine[Any, Any, int | Jump]]


#: Arithmetic whose result is right in the low bits whatever the high bits of the operands are.
_INLINE: Final = {
    BPF_ADD: "{d} + {s}",
    BPF_SUB: "{d} - {s}",
    BPF_MUL: "{d} * {s}",
    BPF_OR: "({d} | {s})",
    BPF_AND: "{d} & {s}",
    BPF_XOR: "({d} ^ {s})",
    BPF_MOV: "{s}",
}

_UNSIGNED: Final = {
    BPF_JEQ: "==",
    BPF_JNE: "!=",
    BPF_JGT: ">",
    BPF_JGE: ">=",
    BPF_JLT: "<",
    BPF_JLE: "<=",
    BPF_JSET: "&",
}


_FORMATS: Final = {8: "<B", 16: "<H", 32: "<I", 64: "<Q"}

_GLOBALS: Final[Mapping[str, Any]] = {
    "__name__": __name__,  # the frames of programs count as frames of the model
    "Position": Position,
    "Unset": Unset,
    "alu": ALU,
    "_call_bpf": _call_bpf,
    "_call_c": _call_c,
    "_tail_call": _tail_call,
    "jmp": JMP,
    "load_at": load_at,
    "rmw_at": rmw_at,
    "store_at": store_at,
    **{f"get{bits}": struct.Struct(c).unpack_from for bits, c in _FORMATS.items()},
    **{f"put{bits}": struct.Struct(c).pack_into for bits, c in _FORMATS.items()},
}


@lru_cache(maxsize=256)
def translate(
    insns: tuple[Insn, ...],
    arity: tuple[tuple[int, int], ...] = (),
    derefs: frozenset[int] = frozenset(),
) -> Mapping[int, BpfFunc]:
    """The coroutine functions by first instruction, made once per distinct bytecode.

    arity   (number, number of arguments) for every kernel function that is called
    derefs  the loads of pointers that order what depends on them
    """
    starts = sorted({0} | {i + insn.imm + 1 for i, insn in enumerate(insns) if is_bpf_call(insn)})
    starts = [start for start in starts if 0 <= start < len(insns)]
    names = dict(_GLOBALS)
    for start, end in pairwise([*starts, len(insns)]):
        function = _Function(insns, start, end, dict(arity), derefs)
        source, lines = function.source()
        names[f"lines_{start}"] = lines
        code = compile(source, f"<bpf function at insn {start}>", "exec")
        exec(code, names)  # noqa: S102  # our own text, made from nothing but numbers
    return {start: names[f"bpf_prog_{start}"] for start in starts}


def is_bpf_call(insn: Insn) -> bool:
    """Does this call another function of the program?"""
    return insn.code == BPF_JMP | BPF_CALL and insn.src == BPF_PSEUDO_CALL


def is_kernel_call(insn: Insn) -> bool:
    """Does this call a function of the kernel?"""
    return insn.code == BPF_JMP | BPF_CALL and insn.src != BPF_PSEUDO_CALL


def is_jump(insn: Insn) -> bool:
    """Does this go elsewhere than to the next instruction, always or sometimes?"""
    kind = BPF_CLASS(insn.code) in (BPF_JMP, BPF_JMP32)
    return kind and BPF_OP(insn.code) not in (BPF_CALL, BPF_EXIT, BPF_TAIL_CALL)


def registers_read(insn: Insn) -> Iterator[int]:
    """The registers whose value an instruction uses, apart from the arguments of a call."""
    kind = BPF_CLASS(insn.code)
    if kind in (BPF_ALU, BPF_ALU64, BPF_JMP, BPF_JMP32):
        if insn.code == BPF_JMP | BPF_EXIT:
            yield 0
        elif insn.code not in (BPF_JMP | BPF_CALL, BPF_JMP | BPF_JA, BPF_JMP | BPF_TAIL_CALL):
            if BPF_OP(insn.code) != BPF_MOV:
                yield insn.dst
            if BPF_SRC(insn.code) == BPF_X:
                yield insn.src
    if kind in (BPF_ST, BPF_STX):
        yield insn.dst
    if kind in (BPF_LDX, BPF_STX):
        yield insn.src


class _Function:
    """The Python text of one function of a program, and which line belongs to which insn."""

    def __init__(
        self,
        insns: Sequence[Insn],
        start: int,
        end: int,
        arity: Mapping[int, int],
        derefs: frozenset[int],
    ) -> None:
        self.insns = insns
        self.start = start
        self.end = end
        self.arity = arity
        self.derefs = derefs
        self.here = start
        self.tail_calls = any(insn.code == BPF_JMP | BPF_TAIL_CALL for insn in insns[start:end])
        self.text: list[str] = []
        self.lines: list[int] = []
        self.second_halves = {i + 1 for i in range(start, end) if is_ld_imm64(insns[i])}
        self.targets = {
            i + insns[i].off + 1
            for i in range(start, end)
            if is_jump(insns[i]) and i not in self.second_halves
        }

    def source(self) -> tuple[str, tuple[int, ...]]:
        self.line(0, f"async def bpf_prog_{self.start}(run, fp, r1, r2, r3, r4, r5):")
        self.line(1, "modelled_frame = Position(run.text.name)")
        self.line(1, "stack = run.stack")
        self.line(1, "calls, low, high, r10 = run.calls, run.low, run.high, run.base + fp")
        for reg in range(1, 6):
            self.line(1, f"if r{reg} is Unset: del r{reg}")
        self.line(1, "if False: r0 = r6 = r7 = r8 = r9 = 0  # makes them local, but not bound")
        self.line(1, f"pc = {self.start}")
        self.line(1, "try:")
        self.line(2, "while True:")
        self.body()
        self.line(1, "except UnboundLocalError as error:")
        self.line(2, f"raise run.uninitialised(error, lines_{self.start}) from None")
        return "\n".join(self.text), tuple(self.lines)

    def line(self, depth: int, text: str) -> None:
        self.text.append("    " * depth + text)
        self.lines.append(self.here)

    def emit(self, *lines: str) -> None:
        for text in lines:
            self.line(4, text)

    def body(self) -> None:
        new_block = True
        for index in range(self.start, self.end):
            targeted = index in self.targets
            if index in self.second_halves and not targeted:
                continue
            self.here = index
            if new_block or targeted:
                self.line(3, f"if pc <= {index}:")
            self.insn(self.insns[index])
            new_block = is_jump(self.insns[index]) or index in self.second_halves
        self.line(3, "if True:")
        self.fail("runs on past the last instruction")

    def fail(self, problem: str) -> None:
        self.emit(f"raise run.error({self.here}, {problem!r})")

    def insn(self, insn: Insn) -> None:
        kind = BPF_CLASS(insn.code)
        if self.here in self.second_halves:
            self.fail("this is the middle of a 64-bit constant")
        elif insn.code == BPF_JMP | BPF_TAIL_CALL:
            self.tail_call(insn)
        elif insn.code not in OPCODES or (kind == BPF_LD and not is_ld_imm64(insn)):
            self.fail("there is no such instruction")
        elif any(reg >= MAX_BPF_REG for reg in (*registers_read(insn), insn.dst)):
            self.fail("there is no such register")
        elif insn.dst == BPF_REG_FP and kind in (BPF_ALU, BPF_ALU64, BPF_LD, BPF_LDX):
            self.fail("the frame pointer is read only")
        elif kind == BPF_LD:
            self.ld_imm64(insn)
        elif kind in (BPF_ALU, BPF_ALU64):
            self.alu(insn)
        elif kind in (BPF_JMP, BPF_JMP32):
            self.jmp(insn)
        else:
            self.access(insn)

    def ld_imm64(self, insn: Insn) -> None:
        """A constant, or one of the addresses that the loader resolved."""
        if self.here + 1 == len(self.insns):
            self.fail("this is half a 64-bit constant")
            return
        high = self.insns[self.here + 1].imm & U32
        value = f"{high << 32 | insn.imm & U32:#x}"
        self.emit(f"r{insn.dst} = " + (f"run.addresses[{self.here}]" if insn.src else value))
        if self.here + 1 in self.targets:
            self.emit(f"pc = {self.here + 2}")

    def alu(self, insn: Insn) -> None:
        wide = BPF_CLASS(insn.code) == BPF_ALU64
        op = BPF_OP(insn.code)
        dst, src = f"r{insn.dst}", f"r{insn.src}" if BPF_SRC(insn.code) == BPF_X else f"{insn.imm}"
        if insn.code in TRUNCATES_SRC:
            self.emit(f"{src} &= {U32:#x}")
        if op in _INLINE:
            value = f"{_INLINE[op].format(d=dst, s=src)} & {U64 if wide else U32:#x}"
        elif insn.code == BPF_ALU64 | BPF_LSH:
            value = f"{dst} << {insn.imm % 64} & {U64:#x}"
        else:
            if BPF_SRC(insn.code) != BPF_X or op == BPF_END:
                src = f"{insn.imm & U64:#x}"
            value = f"alu[{insn.code:#x}]({dst}, {src})"
        self.emit(f"{dst} = {value}")

    def jmp(self, insn: Insn) -> None:
        op = BPF_OP(insn.code)
        if op == BPF_CALL:
            self.call(insn)
        elif op == BPF_EXIT:
            self.emit("return r0")
        elif op == BPF_JA:
            self.go_to(self.here + insn.off + 1, "")
        elif op in _UNSIGNED:
            low = "" if BPF_CLASS(insn.code) == BPF_JMP else f" & {U32:#x}"
            src = f"{insn.imm & (U32 if low else U64):#x}"
            if BPF_SRC(insn.code) == BPF_X:
                src = f"(r{insn.src}{low})"
            self.go_to(self.here + insn.off + 1, f"if (r{insn.dst}{low}) {_UNSIGNED[op]} {src}: ")
        else:
            src = f"r{insn.src}" if BPF_SRC(insn.code) == BPF_X else f"{insn.imm & U64:#x}"
            test = f"if jmp[{insn.code:#x}](r{insn.dst}, {src}): "
            self.go_to(self.here + insn.off + 1, test)

    def go_to(self, target: int, test: str) -> None:
        if not self.start <= target < self.end:
            self.emit(f"{test}raise run.error({self.here}, 'jumps out of its function')")
        elif target > self.here:
            self.emit(f"{test}pc = {target}")
        else:
            self.emit(f"{test}pc = {target}; run.jump_back({self.here}); continue")

    def call(self, insn: Insn) -> None:
        at = f"modelled_frame.at = {self.here}"
        callee = self.here + insn.imm + 1
        if insn.src == BPF_PSEUDO_CALL:
            if not 0 <= callee < len(self.insns):
                self.fail("calls what is outside of the program")
            self.emit(f"{at}; kept = run.save(locals())")
            self.emit(f"r0 = await _call_bpf(run, {callee}, run.arguments(locals()))")
            self.reload()
        elif insn.imm not in self.arity:
            self.fail("calls an unknown function of the kernel")
        else:
            arguments = "".join(f", r{reg}" for reg in range(1, self.arity[insn.imm] + 1))
            if self.tail_calls:
                self.emit(f"{at}; await _call_c(run)")
            self.emit(
                f"run.at = {at}; r0 = await calls[{insn.imm}].function(run{arguments}) & {U64:#x}"
            )

    def tail_call(self, insn: Insn) -> None:
        """Jump to another program, or go on."""
        self.emit(f"modelled_frame.at = {self.here}; kept = run.save(locals())")
        self.emit(f"a = await _tail_call(run, {insn.imm}, r2, r3)", "if a is not None: return a")
        self.reload()

    def reload(self) -> None:
        """The callee-saved registers are what has been left in them."""
        for reg, name in ((6, "rbx"), (7, "r13"), (8, "r14"), (9, "r15")):
            self.emit(f"if {reg} in kept: r{reg} = run.machine.{name}")

    def access(self, insn: Insn) -> None:
        """A load, a store or an atomic addition: private or a visible operation."""
        size = BYTES[BPF_SIZE(insn.code)]
        kind = BPF_CLASS(insn.code)
        is_load = kind == BPF_LDX
        base = insn.src if is_load else insn.dst
        mask = f"{(1 << 8 * size) - 1:#x}"
        value = f"{insn.imm & ((1 << 8 * size) - 1):#x}" if kind == BPF_ST else f"r{insn.src}"
        place = f"a, {size}"
        address = f"r{base} {insn.off:+d} & {U64:#x}" if insn.off else f"r{base}"
        if BPF_MODE(insn.code) == BPF_XADD:
            private = f"run.add({place}, {value}, {self.here})"
            visible = f'await rmw_at({place}, "add", {value} & {mask}, "xadd")'
        elif base == BPF_REG_FP and -MAX_BPF_STACK <= insn.off <= -size:
            slot = f"stack, fp {insn.off:+d}"
            load = f"r{insn.dst} = get{8 * size}({slot})[0]"
            self.emit(load if is_load else f"put{8 * size}({slot}, {value} & {mask})")
            return
        elif is_load:
            private = f"r{insn.dst} = run.load({place}, {self.here})"
            loaded = "run.load_dw(a)" if size == BYTES[BPF_DW] else f"load_at({place})"
            visible = f"r{insn.dst} = await {loaded}"
        else:
            private = f"run.store({place}, {value}, {self.here})"
            visible = f"await store_at({place}, {value} & {mask})"
        self.emit(f"a = {address}", f"if low <= a < high: {private}")
        self.emit(f"else: modelled_frame.at = {self.here}; {visible}")
