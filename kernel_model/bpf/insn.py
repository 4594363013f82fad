"""include/uapi/linux/bpf.h, include/linux/filter.h (v5.10): eBPF instructions and their macros

A program is a sequence of `Insn`, one for each 8-byte `struct bpf_insn`; the 16-byte load of a
64-bit constant is two of them. The macros below build instructions under the kernel's names; the
ones that C expands to two instructions return a pair. `Insn` itself is as permissive as the
struct: whether an instruction makes sense is for `kernel_model.bpf.check` to say.

Not modelled: the big-endian layout of `struct bpf_insn`; classic BPF (`struct sock_filter`); the
internal loads that fault softly (BPF_PROBE_MEM) and the internal call of the interpreter
(BPF_CALL_ARGS).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from sim.errors import MisuseError

# Instruction classes: the three low bits of the opcode.
BPF_LD = 0x00
BPF_LDX = 0x01
BPF_ST = 0x02
BPF_STX = 0x03
BPF_ALU = 0x04
BPF_JMP = 0x05
BPF_JMP32 = 0x06
BPF_ALU64 = 0x07

# Width of a memory access.
BPF_W = 0x00
BPF_H = 0x08
BPF_B = 0x10
BPF_DW = 0x18

# Addressing mode of a memory access.
BPF_IMM = 0x00
BPF_ABS = 0x20
BPF_IND = 0x40
BPF_MEM = 0x60
BPF_XADD = 0xC0

# Second operand of arithmetic and jumps: the immediate or the source register.
BPF_K = 0x00
BPF_X = 0x08

# Arithmetic.
BPF_ADD = 0x00
BPF_SUB = 0x10
BPF_MUL = 0x20
BPF_DIV = 0x30
BPF_OR = 0x40
BPF_AND = 0x50
BPF_LSH = 0x60
BPF_RSH = 0x70
BPF_NEG = 0x80
BPF_MOD = 0x90
BPF_XOR = 0xA0
BPF_MOV = 0xB0
BPF_ARSH = 0xC0
BPF_END = 0xD0

# Direction of a byte swap; it takes the place of BPF_K and BPF_X.
BPF_TO_LE = 0x00
BPF_TO_BE = 0x08

# Jumps.
BPF_JA = 0x00
BPF_JEQ = 0x10
BPF_JGT = 0x20
BPF_JGE = 0x30
BPF_JSET = 0x40
BPF_JNE = 0x50
BPF_JSGT = 0x60
BPF_JSGE = 0x70
BPF_CALL = 0x80
BPF_EXIT = 0x90
BPF_JLT = 0xA0
BPF_JLE = 0xB0
BPF_JSLT = 0xC0
BPF_JSLE = 0xD0
BPF_TAIL_CALL = 0xF0  # internal: what the verifier makes of a call of bpf_tail_call()

BPF_REG_0 = BPF_REG_A = 0
BPF_REG_1 = BPF_REG_ARG1 = 1
BPF_REG_2 = BPF_REG_ARG2 = 2
BPF_REG_3 = BPF_REG_ARG3 = 3
BPF_REG_4 = BPF_REG_ARG4 = 4
BPF_REG_5 = BPF_REG_ARG5 = 5
BPF_REG_6 = BPF_REG_CTX = 6
BPF_REG_7 = BPF_REG_X = 7
BPF_REG_8 = 8
BPF_REG_9 = 9
BPF_REG_10 = BPF_REG_FP = 10
MAX_BPF_REG = 11
BPF_REG_AX = MAX_BPF_REG  # internal: scratch register of rewritten programs

# What the source register field means in a 64-bit load and in a call.
BPF_PSEUDO_MAP_FD = 1
BPF_PSEUDO_MAP_VALUE = 2
BPF_PSEUDO_BTF_ID = 3
BPF_PSEUDO_CALL = 1

MAX_BPF_STACK = 512  # bytes
BPF_MAXINSNS = 4096  # instructions of a program without CAP_BPF

_BPF_INSN = struct.Struct("<BBhi")
_LIMITS = (
    ("code", 0, 0xFF),
    ("dst", 0, 0xF),
    ("src", 0, 0xF),
    ("off", -(2**15), 2**15 - 1),
    ("imm", -(2**31), 2**31 - 1),
)


class InsnError(MisuseError, ValueError):
    """Something cannot be an instruction: a field out of range, bytes of a wrong length."""


@dataclass(frozen=True, slots=True)
class Insn:
    """One `struct bpf_insn`.

    Each field holds exactly what its bits hold: `code` unsigned 8, `dst` and `src` unsigned 4,
    `off` signed 16, `imm` signed 32. Anything else raises `InsnError`.
    """

    code: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise InsnError(f"{name} {value} is not in {low}..{high}")


def encode(program: Iterable[Insn]) -> bytes:
    """The program as the kernel's array of `struct bpf_insn`, little-endian: 8 bytes each."""
    return b"".join(
        _BPF_INSN.pack(insn.code, insn.src << 4 | insn.dst, insn.off, insn.imm) for insn in program
    )


def decode(data: bytes) -> tuple[Insn, ...]:
    """The inverse of `encode`; bytes that are no whole instructions raise `InsnError`."""
    if left_over := len(data) % _BPF_INSN.size:
        raise InsnError(
            f"{len(data)} bytes are no whole number of 8-byte instructions: {left_over} left over"
        )
    return tuple(
        Insn(code, registers & 0xF, registers >> 4, off, imm)
        for code, registers, off, imm in _BPF_INSN.iter_unpack(data)
    )


def BPF_CLASS(code: int) -> int:
    return code & 0x07


def BPF_SIZE(code: int) -> int:
    return code & 0x18


def BPF_MODE(code: int) -> int:
    return code & 0xE0


def BPF_OP(code: int) -> int:
    return code & 0xF0


def BPF_SRC(code: int) -> int:
    return code & 0x08


def is_ld_imm64(insn: Insn) -> bool:
    """Is this the first half of a 64-bit constant, so that the next `Insn` is no instruction?"""
    return insn.code == BPF_LD | BPF_IMM | BPF_DW


def is_tail_call(insn: Insn) -> bool:
    """Is this what the verifier makes of a call of bpf_tail_call()?"""
    return insn.code == BPF_JMP | BPF_TAIL_CALL


def signed(value: int, bits: int) -> int:
    """The low `bits` bits of `value` read as two's complement."""
    sign = 1 << (bits - 1)
    return ((value & (2 * sign - 1)) ^ sign) - sign


def _imm(value: int, bits: int = 32) -> int:
    """An immediate as C would convert it; signed and unsigned spellings are equally welcome."""
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise InsnError(f"immediate {value} does not fit in {bits} bits")
    return signed(value, bits)


def BPF_ALU64_REG(op: int, dst: int, src: int) -> Insn:
    return Insn(BPF_ALU64 | BPF_OP(op) | BPF_X, dst, src)


def BPF_ALU32_REG(op: int, dst: int, src: int) -> Insn:
    return Insn(BPF_ALU | BPF_OP(op) | BPF_X, dst, src)


def BPF_ALU64_IMM(op: int, dst: int, imm: int) -> Insn:
    return Insn(BPF_ALU64 | BPF_OP(op) | BPF_K, dst, imm=_imm(imm))


def BPF_ALU32_IMM(op: int, dst: int, imm: int) -> Insn:
    return Insn(BPF_ALU | BPF_OP(op) | BPF_K, dst, imm=_imm(imm))


def BPF_ENDIAN(direction: int, dst: int, bits: int) -> Insn:
    return Insn(BPF_ALU | BPF_END | BPF_SRC(direction), dst, imm=bits)


def BPF_MOV64_REG(dst: int, src: int) -> Insn:
    return BPF_ALU64_REG(BPF_MOV, dst, src)


def BPF_MOV32_REG(dst: int, src: int) -> Insn:
    return BPF_ALU32_REG(BPF_MOV, dst, src)


def BPF_MOV64_IMM(dst: int, imm: int) -> Insn:
    return BPF_ALU64_IMM(BPF_MOV, dst, imm)


def BPF_MOV32_IMM(dst: int, imm: int) -> Insn:
    return BPF_ALU32_IMM(BPF_MOV, dst, imm)


def BPF_LD_IMM64_RAW(dst: int, src: int, imm: int) -> tuple[Insn, Insn]:
    """Both halves of a 64-bit constant; `src` is 0 or one of BPF_PSEUDO_MAP_FD and the like."""
    imm = _imm(imm, 64)
    return (
        Insn(BPF_LD | BPF_DW | BPF_IMM, dst, src, imm=signed(imm, 32)),
        Insn(0, imm=imm >> 32),
    )


def BPF_LD_IMM64(dst: int, imm: int) -> tuple[Insn, Insn]:
    return BPF_LD_IMM64_RAW(dst, 0, imm)


def BPF_LD_MAP_FD(dst: int, fd: int) -> tuple[Insn, Insn]:
    return BPF_LD_IMM64_RAW(dst, BPF_PSEUDO_MAP_FD, _imm(fd) & 0xFFFF_FFFF)


def BPF_LD_MAP_VALUE(dst: int, fd: int, value_off: int) -> tuple[Insn, Insn]:
    return BPF_LD_IMM64_RAW(
        dst, BPF_PSEUDO_MAP_VALUE, _imm(value_off) << 32 | _imm(fd) & 0xFFFF_FFFF
    )


def BPF_LD_ABS(size: int, imm: int) -> Insn:
    return Insn(BPF_LD | BPF_SIZE(size) | BPF_ABS, imm=_imm(imm))


def BPF_LD_IND(size: int, src: int, imm: int) -> Insn:
    return Insn(BPF_LD | BPF_SIZE(size) | BPF_IND, src=src, imm=_imm(imm))


def BPF_LDX_MEM(size: int, dst: int, src: int, off: int) -> Insn:
    return Insn(BPF_LDX | BPF_SIZE(size) | BPF_MEM, dst, src, off)


def BPF_STX_MEM(size: int, dst: int, src: int, off: int) -> Insn:
    return Insn(BPF_STX | BPF_SIZE(size) | BPF_MEM, dst, src, off)


def BPF_STX_XADD(size: int, dst: int, src: int, off: int) -> Insn:
    return Insn(BPF_STX | BPF_SIZE(size) | BPF_XADD, dst, src, off)


def BPF_ST_MEM(size: int, dst: int, off: int, imm: int) -> Insn:
    return Insn(BPF_ST | BPF_SIZE(size) | BPF_MEM, dst, off=off, imm=_imm(imm))


def BPF_JMP_REG(op: int, dst: int, src: int, off: int) -> Insn:
    return Insn(BPF_JMP | BPF_OP(op) | BPF_X, dst, src, off)


def BPF_JMP_IMM(op: int, dst: int, imm: int, off: int) -> Insn:
    return Insn(BPF_JMP | BPF_OP(op) | BPF_K, dst, off=off, imm=_imm(imm))


def BPF_JMP32_REG(op: int, dst: int, src: int, off: int) -> Insn:
    return Insn(BPF_JMP32 | BPF_OP(op) | BPF_X, dst, src, off)


def BPF_JMP32_IMM(op: int, dst: int, imm: int, off: int) -> Insn:
    return Insn(BPF_JMP32 | BPF_OP(op) | BPF_K, dst, off=off, imm=_imm(imm))


def BPF_JMP_A(off: int) -> Insn:
    return Insn(BPF_JMP | BPF_JA, off=off)


def BPF_CALL_REL(target: int) -> Insn:
    """A call of another function of the program, `target` instructions after the next one."""
    return Insn(BPF_JMP | BPF_CALL, src=BPF_PSEUDO_CALL, imm=target)


def BPF_EMIT_CALL(func: int) -> Insn:
    """A call into the kernel: a helper's number, or its address once the verifier is done."""
    return Insn(BPF_JMP | BPF_CALL, imm=func)


def BPF_EXIT_INSN() -> Insn:
    return Insn(BPF_JMP | BPF_EXIT)


_BINARY = {*range(BPF_ADD, BPF_ARSH + 1, 0x10)} - {BPF_NEG}
_COMPARE = {*range(BPF_JEQ, BPF_JSLE + 1, 0x10)} - {BPF_CALL, BPF_EXIT}
_SIZES = (BPF_B, BPF_H, BPF_W, BPF_DW)

OPCODES = frozenset(
    {kind | op | source for kind in (BPF_ALU, BPF_ALU64) for op in _BINARY for source in (0, 8)}
    | {kind | op | source for kind in (BPF_JMP, BPF_JMP32) for op in _COMPARE for source in (0, 8)}
    | {kind | BPF_MEM | size for kind in (BPF_LDX, BPF_ST, BPF_STX) for size in _SIZES}
    | {BPF_LD | mode | size for mode in (BPF_ABS, BPF_IND) for size in (BPF_B, BPF_H, BPF_W)}
    | {BPF_STX | BPF_XADD | BPF_W, BPF_STX | BPF_XADD | BPF_DW, BPF_LD | BPF_IMM | BPF_DW}
    | {BPF_ALU | BPF_NEG, BPF_ALU64 | BPF_NEG}
    | {BPF_ALU | BPF_END | BPF_TO_LE, BPF_ALU | BPF_END | BPF_TO_BE}
    | {BPF_JMP | BPF_JA, BPF_JMP | BPF_CALL, BPF_JMP | BPF_EXIT}
)
"""Every opcode that a program may be loaded with (`bpf_opcode_in_insntable`, kernel/bpf/core.c)."""
