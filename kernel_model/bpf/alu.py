"""kernel/bpf/core.c, kernel/bpf/verifier.c (v5.10): what arithmetic and conditional jumps compute

`ALU[code](dst, operand)` is the new value of the destination register and `JMP[code](dst, operand)`
whether the jump is taken. Registers are unsigned 64-bit integers, 0 to 2**64-1; the operand is the
source register or the sign-extended immediate, as `operand` picks it. `step` and `taken` do one
instruction on a register file.

The meaning is that of a verified program under the x86-64 JIT, since two questions are left open by
the instruction set alone:

- Shift counts are taken modulo the width, as the processor does it. (The verifier refuses constant
  counts that are too large; counts in registers it lets pass.)
- Division by zero. The verifier guards each division by a register with a test (v5.10:
  `fixup_bpf_calls`): the quotient is 0 and the remainder is the destination, untouched. Its guard
  of the 32-bit forms first truncates the *source register* to its low 32 bits, which the program
  can see, and a 32-bit remainder by zero leaves all 64 bits of the destination alone. Upstream
  repaired the former with e88b2c6e5a4d and the latter with 9b00f1b78809, both after v5.10.

Not modelled: those two repairs; constant blinding; the masking of pointer arithmetic against
speculation.
"""

import operator
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from types import MappingProxyType
from typing import Final

from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU,
    BPF_ALU64,
    BPF_AND,
    BPF_ARSH,
    BPF_DIV,
    BPF_END,
    BPF_JEQ,
    BPF_JGE,
    BPF_JGT,
    BPF_JLE,
    BPF_JLT,
    BPF_JMP,
    BPF_JMP32,
    BPF_JNE,
    BPF_JSET,
    BPF_JSGE,
    BPF_JSGT,
    BPF_JSLE,
    BPF_JSLT,
    BPF_K,
    BPF_LSH,
    BPF_MOD,
    BPF_MOV,
    BPF_MUL,
    BPF_NEG,
    BPF_OR,
    BPF_RSH,
    BPF_SRC,
    BPF_SUB,
    BPF_TO_BE,
    BPF_TO_LE,
    BPF_X,
    BPF_XOR,
    Insn,
    signed,
)

U32: Final = 0xFFFF_FFFF
U64: Final = 0xFFFF_FFFF_FFFF_FFFF

_Operation = Callable[[int, int, int], int]  # dst and operand of `bits` bits, bits -> any integer
_Relation = Callable[[int, int], bool]

_OPERATIONS: Final[Mapping[int, _Operation]] = {
    BPF_ADD: lambda dst, src, _: dst + src,
    BPF_SUB: lambda dst, src, _: dst - src,
    BPF_MUL: lambda dst, src, _: dst * src,
    BPF_DIV: lambda dst, src, _: dst // src if src else 0,
    BPF_MOD: lambda dst, src, _: dst % src if src else dst,
    BPF_OR: lambda dst, src, _: dst | src,
    BPF_AND: lambda dst, src, _: dst & src,
    BPF_XOR: lambda dst, src, _: dst ^ src,
    BPF_MOV: lambda _, src, __: src,
    BPF_LSH: lambda dst, src, bits: dst << src % bits,
    BPF_RSH: lambda dst, src, bits: dst >> src % bits,
    BPF_ARSH: lambda dst, src, bits: signed(dst, bits) >> src % bits,
}

_UNSIGNED: Final[Mapping[int, _Relation]] = {
    BPF_JEQ: operator.eq,
    BPF_JNE: operator.ne,
    BPF_JGT: operator.gt,
    BPF_JGE: operator.ge,
    BPF_JLT: operator.lt,
    BPF_JLE: operator.le,
    BPF_JSET: lambda dst, src: dst & src != 0,
}

_SIGNED: Final[Mapping[int, _Relation]] = {
    BPF_JSGT: operator.gt,
    BPF_JSGE: operator.ge,
    BPF_JSLT: operator.lt,
    BPF_JSLE: operator.le,
}


def _alu64(operation: _Operation) -> Callable[[int, int], int]:
    return lambda dst, src: operation(dst, src, 64) & U64


def _alu32(operation: _Operation) -> Callable[[int, int], int]:
    return lambda dst, src: operation(dst & U32, src & U32, 32) & U32


def _neg64(dst: int, _: int) -> int:
    return -dst & U64


def _neg32(dst: int, _: int) -> int:
    return -dst & U32


def _mod32_reg(dst: int, src: int) -> int:
    divisor = src & U32
    return (dst & U32) % divisor if divisor else dst


def _to_le(dst: int, bits: int) -> int:
    return dst & ((1 << bits) - 1)


def _to_be(dst: int, bits: int) -> int:
    return int.from_bytes(_to_le(dst, bits).to_bytes(bits // 8, "little"), "big")


def _low32(relation: _Relation) -> _Relation:
    return lambda dst, src: relation(dst & U32, src & U32)


def _signed(relation: _Relation, bits: int) -> _Relation:
    return lambda dst, src: relation(signed(dst, bits), signed(src, bits))


ALU: Final[Mapping[int, Callable[[int, int], int]]] = MappingProxyType(
    {BPF_ALU64 | op | x: _alu64(f) for op, f in _OPERATIONS.items() for x in (BPF_K, BPF_X)}
    | {BPF_ALU | op | x: _alu32(f) for op, f in _OPERATIONS.items() for x in (BPF_K, BPF_X)}
    | {BPF_ALU | BPF_MOD | BPF_X: _mod32_reg}
    | {BPF_ALU64 | BPF_NEG: _neg64, BPF_ALU | BPF_NEG: _neg32}
    | {BPF_ALU | BPF_END | BPF_TO_LE: _to_le, BPF_ALU | BPF_END | BPF_TO_BE: _to_be}
)
"""By opcode: the new destination from the old one and the operand. (Byte swaps: operand = bits.)"""

JMP: Final[Mapping[int, _Relation]] = MappingProxyType(
    {BPF_JMP | op | x: f for op, f in _UNSIGNED.items() for x in (BPF_K, BPF_X)}
    | {BPF_JMP | op | x: _signed(f, 64) for op, f in _SIGNED.items() for x in (BPF_K, BPF_X)}
    | {BPF_JMP32 | op | x: _low32(f) for op, f in _UNSIGNED.items() for x in (BPF_K, BPF_X)}
    | {BPF_JMP32 | op | x: _signed(f, 32) for op, f in _SIGNED.items() for x in (BPF_K, BPF_X)}
)
"""By opcode of a conditional jump: whether it is taken, from the two things compared."""

TRUNCATES_SRC: Final = frozenset({BPF_ALU | BPF_DIV | BPF_X, BPF_ALU | BPF_MOD | BPF_X})
"""The opcodes whose guard leaves only the low 32 bits in the source register."""


def operand(insn: Insn, regs: Sequence[int]) -> int:
    """The second operand of arithmetic or of a conditional jump, as an unsigned 64-bit integer."""
    if BPF_SRC(insn.code) == BPF_X and insn.code != BPF_ALU | BPF_END | BPF_TO_BE:
        return regs[insn.src]
    return insn.imm & U64


def step(insn: Insn, regs: MutableSequence[int]) -> None:
    """Does one arithmetic instruction; an opcode that is none raises KeyError."""
    operation = ALU[insn.code]
    if insn.code in TRUNCATES_SRC:
        regs[insn.src] &= U32
    regs[insn.dst] = operation(regs[insn.dst], operand(insn, regs))


def taken(insn: Insn, regs: Sequence[int]) -> bool:
    """Whether a conditional jump jumps; an opcode that is none raises KeyError."""
    return JMP[insn.code](regs[insn.dst], operand(insn, regs))
