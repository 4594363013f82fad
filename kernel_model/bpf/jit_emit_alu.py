"""arch/x86/net/bpf_jit_comp.c (v5.10): machine code for arithmetic

And the encoding that all of `kernel_model.bpf.jit_emit` shares. Registers are those of the
machine, by number.

Not modelled: operands in memory (they are in `kernel_model.bpf.jit_emit`); blinded constants.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kernel_model.bpf import insn as bpf
from kernel_model.bpf.insn import Insn


class Code(NamedTuple):
    """One machine instruction and its text."""

    data: bytes
    text: str


# The registers of the machine by their numbers, under the name for each width in bits.
_LEGACY = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
NAMES: Final = {
    64: (*(f"r{name}" for name in _LEGACY), *(f"r{n}" for n in range(8, 16))),
    32: (*(f"e{name}" for name in _LEGACY), *(f"r{n}d" for n in range(8, 16))),
    16: (*_LEGACY, *(f"r{n}w" for n in range(8, 16))),
    8: (*"al cl dl bl spl bpl sil dil".split(), *(f"r{n}b" for n in range(8, 16))),
}
RAX, RCX, RDX, RSP, RBP = 0, 1, 2, 4, 5
AUX_REG: Final = 11  # r11: no program has it

# Number of the operation in the opcodes 00 to 3f and in the group 80 to 83.
ADD, CMP = (0, "add"), (7, "cmp")
_ARITH = {
    bpf.BPF_ADD: ADD,
    bpf.BPF_OR: (1, "or"),
    bpf.BPF_AND: (4, "and"),
    bpf.BPF_SUB: (5, "sub"),
    bpf.BPF_XOR: (6, "xor"),
}

# Number of the operation in the groups c1, d1 and d3.
_SHIFT = {bpf.BPF_LSH: (4, "shl"), bpf.BPF_RSH: (5, "shr"), bpf.BPF_ARSH: (7, "sar")}


def is_imm8(value: int) -> bool:
    return -128 <= value <= 127


def le(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def imm_text(value: int, bits: int) -> str:
    return f"${value & (1 << bits) - 1:#x}"


def make(data: bytes, mnemonic: str, *operands: str) -> Code:
    return Code(data, f"{mnemonic:<6} {','.join(operands)}" if operands else mnemonic)


def reg_text(number: int, bits: int) -> str:
    return "%" + NAMES[bits][number]


def rex(bits: int, reg: int, rm: int) -> bytes:
    """What comes before the opcode: the prefix of 16-bit operands, REX if it is needed.

    Of 8-bit operands, `reg` is taken to be one.
    """
    prefix = 0x40 | (bits == 64) << 3 | (reg >> 3) << 2 | rm >> 3
    need = prefix != 0x40 or (bits == 8 and reg >= RSP)
    return (b"\x66" if bits == 16 else b"") + (bytes((prefix,)) if need else b"")


def direct(opcode: int, bits: int, reg: int, rm: int) -> bytes:
    """An instruction of one or two registers; `reg` may be the number of an operation."""
    return rex(bits, reg, rm) + bytes((opcode, 0xC0 | (reg & 7) << 3 | rm & 7))


def two_regs(mnemonic: str, opcode: int, bits: int, dst: int, src: int) -> Code:
    data = direct(opcode, bits, src, dst)
    return make(data, mnemonic, reg_text(src, bits), reg_text(dst, bits))


def one_reg(mnemonic: str, opcode: int, bits: int, operation: int, dst: int) -> Code:
    return make(direct(opcode, bits, operation, dst), mnemonic, reg_text(dst, bits))


def _mov(dst: int, src: int) -> list[Code]:
    """A 64-bit copy; none if it would be of a register to itself."""
    return [] if dst == src else [two_regs("mov", 0x89, 64, dst, src)]


def _mov_reg(bits: int, dst: int, src: int) -> list[Code]:
    return _mov(dst, src) if bits == 64 else [two_regs("mov", 0x89, 32, dst, src)]


def _mov_sext(dst: int, imm: int) -> Code:
    data = direct(0xC7, 64, 0, dst) + le(imm, 4)
    return make(data, "mov", imm_text(imm, 64), reg_text(dst, 64))


def _mov_imm32(bits: int, dst: int, imm: int) -> Code:
    """The shortest that loads a constant; one of 64 bits is the sign extension of `imm`."""
    if bits == 64 and imm < 0:
        return _mov_sext(dst, imm)
    if imm == 0:
        return two_regs("xor", 0x31, 32, dst, dst)
    data = rex(32, 0, dst) + bytes((0xB8 | dst & 7,)) + le(imm, 4)
    return make(data, "mov", imm_text(imm, 32), reg_text(dst, 32))


def mov_imm64(dst: int, imm: int) -> Code:
    imm &= (1 << 64) - 1
    if imm < 1 << 32:
        return _mov_imm32(32, dst, imm)
    data = rex(64, 0, dst) + bytes((0xB8 | dst & 7,)) + le(imm, 8)
    return make(data, "movabs", imm_text(imm, 64), reg_text(dst, 64))


def arith_imm(operation: tuple[int, str], bits: int, dst: int, imm: int) -> Code:
    """An operation of the group 80 to 83 with a sign-extended constant, the short form if it fits.

    The form that has no operand byte, for the accumulator, is not used for comparisons.
    """
    number, mnemonic = operation
    if is_imm8(imm):
        data = direct(0x83, bits, number, dst) + le(imm, 1)
    elif dst == RAX and operation is not CMP:
        data = rex(bits, 0, dst) + bytes((number << 3 | 5,)) + le(imm, 4)
    else:
        data = direct(0x81, bits, number, dst) + le(imm, 4)
    return make(data, mnemonic, imm_text(imm, bits), reg_text(dst, bits))


def push_reg(reg: int) -> Code:
    return make(rex(32, 0, reg) + bytes((0x50 | reg & 7,)), "push", reg_text(reg, 64))


def pop_reg(reg: int) -> Code:
    return make(rex(32, 0, reg) + bytes((0x58 | reg & 7,)), "pop", reg_text(reg, 64))


def _div_mod(insn: Insn, bits: int, dst: int, src: int) -> list[Code]:
    divisor = (
        _mov(AUX_REG, src)
        if bpf.BPF_SRC(insn.code) == bpf.BPF_X
        else [_mov_sext(AUX_REG, insn.imm)]
    )
    result = RDX if bpf.BPF_OP(insn.code) == bpf.BPF_MOD else RAX
    return [
        push_reg(RAX),
        push_reg(RDX),
        *divisor,
        *_mov(RAX, dst),
        two_regs("xor", 0x31, 32, RDX, RDX),
        one_reg("div", 0xF7, bits, 6, AUX_REG),
        *_mov(AUX_REG, result),
        pop_reg(RDX),
        pop_reg(RAX),
        *_mov(dst, AUX_REG),
    ]


def _mul(insn: Insn, bits: int, dst: int, src: int) -> list[Code]:
    """The product is in rax, and rdx is clobbered; whatever of the two is not `dst` is kept."""
    return [
        *([push_reg(RAX)] if dst != RAX else []),
        *([push_reg(RDX)] if dst != RDX else []),
        *_mov(AUX_REG, dst),
        *(
            _mov_reg(bits, RAX, src)
            if bpf.BPF_SRC(insn.code) == bpf.BPF_X
            else [_mov_imm32(bits, RAX, insn.imm)]
        ),
        one_reg("mul", 0xF7, bits, 4, AUX_REG),
        *([pop_reg(RDX)] if dst != RDX else []),
        *([*_mov(dst, RAX), pop_reg(RAX)] if dst != RAX else []),
    ]


def _shift(insn: Insn, bits: int, dst: int, src: int) -> list[Code]:
    number, mnemonic = _SHIFT[bpf.BPF_OP(insn.code)]
    if bpf.BPF_SRC(insn.code) == bpf.BPF_K:
        if insn.imm == 1:
            return [one_reg(mnemonic, 0xD1, bits, number, dst)]
        data = direct(0xC1, bits, number, dst) + le(insn.imm, 1)
        return [make(data, mnemonic, imm_text(insn.imm, 8), reg_text(dst, bits))]
    shifted = AUX_REG if dst == RCX else dst
    data = direct(0xD3, bits, number, shifted)
    return [
        *_mov(shifted, dst),
        *([push_reg(RCX), *_mov(RCX, src)] if src != RCX else []),
        make(data, mnemonic, "%cl", reg_text(shifted, bits)),
        *([pop_reg(RCX)] if src != RCX else []),
        *_mov(dst, shifted),
    ]


def _end(insn: Insn, dst: int) -> list[Code]:
    swap = bpf.BPF_SRC(insn.code) == bpf.BPF_TO_BE
    bits = insn.imm
    if bits == 16:
        rotate = direct(0xC1, 16, 1, dst) + b"\x08"
        data = rex(32, dst, dst) + bytes((0x0F, 0xB7, 0xC0 | (dst & 7) << 3 | dst & 7))
        return [
            *([make(rotate, "ror", "$0x8", reg_text(dst, 16))] if swap else []),
            make(data, "movzwl", reg_text(dst, 16), reg_text(dst, 32)),
        ]
    if bits not in (32, 64):
        return []
    if swap:
        data = rex(bits, 0, dst) + bytes((0x0F, 0xC8 | dst & 7))
        return [make(data, "bswap", reg_text(dst, bits))]
    return _mov_reg(bits, dst, dst)


def emit_alu(insn: Insn, dst: int, src: int) -> list[Code]:
    bits = 64 if bpf.BPF_CLASS(insn.code) == bpf.BPF_ALU64 else 32
    op = bpf.BPF_OP(insn.code)
    by_register = bpf.BPF_SRC(insn.code) == bpf.BPF_X
    if op == bpf.BPF_MOV:
        return _mov_reg(bits, dst, src) if by_register else [_mov_imm32(bits, dst, insn.imm)]
    if op == bpf.BPF_NEG:
        return [one_reg("neg", 0xF7, bits, 3, dst)]
    if op == bpf.BPF_END:
        return _end(insn, dst)
    if op in (bpf.BPF_DIV, bpf.BPF_MOD):
        return _div_mod(insn, bits, dst, src)
    if op == bpf.BPF_MUL:
        return _mul(insn, bits, dst, src)
    if op in _SHIFT:
        return _shift(insn, bits, dst, src)
    if not by_register:
        return [arith_imm(_ARITH[op], bits, dst, insn.imm)]
    number, mnemonic = _ARITH[op]
    return [two_regs(mnemonic, number << 3 | 1, bits, dst, src)]
