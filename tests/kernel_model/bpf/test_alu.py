"""Arithmetic and jumps: corner cases that name every opcode, and C as a second opinion."""

import operator
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_uint32, c_uint64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_model.bpf import alu
from kernel_model.bpf.asm import assemble
from kernel_model.bpf.insn import (
    BPF_ALU32_REG,
    BPF_ALU64_REG,
    BPF_DIV,
    BPF_MOD,
    BPF_MOV32_REG,
    OPCODES,
    Insn,
)

MAX = 0xFFFF_FFFF_FFFF_FFFF
MIN64 = 0x8000_0000_0000_0000  # the most negative 64-bit number
HIGH = 0xDEAD_BEEF_0000_0000  # what a 32-bit operation has to ignore and to clear

# (instruction, r1 before, r2 before, r1 after). With an immediate r2 is of no matter.
ARITHMETIC = [
    ("r1 += r2", 1, 2, 3),
    ("r1 += r2", MAX, 1, 0),
    ("r1 += -1", 0, 0, MAX),
    ("r1 += 2147483647", 1, 0, 0x8000_0000),
    ("w1 += w2", HIGH | 0xFFFF_FFFF, HIGH | 2, 1),
    ("w1 += -1", HIGH, 0, 0xFFFF_FFFF),
    ("r1 -= r2", 0, 1, MAX),
    ("r1 -= -2147483648", 0, 0, 0x8000_0000),
    ("w1 -= w2", 0, 1, 0xFFFF_FFFF),
    ("w1 -= 1", HIGH, 0, 0xFFFF_FFFF),
    ("r1 *= r2", MAX, MAX, 1),
    ("r1 *= r2", 0x1_0000_0000, 0x1_0000_0000, 0),
    ("r1 *= -1", 5, 0, MAX - 4),
    ("w1 *= w2", HIGH | 0x1_0000, HIGH | 0x1_0001, 0x1_0000),
    ("w1 *= -2", 0x8000_0001, 0, 0xFFFF_FFFE),
    ("r1 /= r2", 7, 2, 3),
    ("r1 /= r2", MAX, 2, 0x7FFF_FFFF_FFFF_FFFF),  # unsigned
    ("r1 /= r2", 7, 0, 0),
    ("r1 /= r2", MIN64, MAX, 0),
    ("r1 /= -1", MAX, 0, 1),  # the divisor is sign-extended, then unsigned
    ("r1 /= 3", 10, 0, 3),
    ("w1 /= w2", HIGH | 10, HIGH | 3, 3),
    ("w1 /= w2", MAX, HIGH, 0),  # the low half of the divisor is zero
    ("w1 /= -1", 0xFFFF_FFFF, 0, 1),
    ("r1 %= r2", 7, 4, 3),
    ("r1 %= r2", MAX, 10, 5),  # unsigned: 2**64-1 ends in a 5
    ("r1 %= r2", HIGH | 7, 0, HIGH | 7),
    ("r1 %= -1", 5, 0, 5),
    ("w1 %= w2", HIGH | 7, HIGH | 4, 3),
    ("w1 %= w2", HIGH | 7, HIGH, HIGH | 7),  # v5.10: by zero, all 64 bits stay
    ("w1 %= 4", HIGH | 7, 0, 3),
    ("r1 |= r2", 0xF0, 0x0F, 0xFF),
    ("r1 |= -2147483648", 1, 0, 0xFFFF_FFFF_8000_0001),
    ("w1 |= w2", HIGH | 0xF0, HIGH | 0x0F, 0xFF),
    ("w1 |= -1", 0, 0, 0xFFFF_FFFF),
    ("r1 &= r2", 0xFF, 0x3C, 0x3C),
    ("r1 &= -16", MAX, 0, MAX - 15),
    ("w1 &= w2", MAX, HIGH | 0xFF, 0xFF),
    ("w1 &= -16", MAX, 0, 0xFFFF_FFF0),
    ("r1 ^= r2", MAX, 1, MAX - 1),
    ("r1 ^= -1", 0, 0, MAX),
    ("w1 ^= w2", HIGH | 5, 5, 0),
    ("w1 ^= -1", HIGH, 0, 0xFFFF_FFFF),
    ("r1 = r2", 0, HIGH | 1, HIGH | 1),
    ("r1 = -1", 0, 0, MAX),
    ("r1 = 5", MAX, 0, 5),
    ("w1 = w2", MAX, HIGH | 1, 1),
    ("w1 = -1", 0, 0, 0xFFFF_FFFF),
    ("r1 <<= r2", 1, 63, MIN64),
    ("r1 <<= r2", 1, 64, 1),  # counts are modulo 64
    ("r1 <<= r2", 1, MAX, MIN64),
    ("r1 <<= 4", MAX, 0, MAX - 15),
    ("w1 <<= w2", HIGH | 3, 31, 0x8000_0000),
    ("w1 <<= w2", 3, 32, 3),  # counts are modulo 32
    ("w1 <<= 1", 0xFFFF_FFFF, 0, 0xFFFF_FFFE),
    ("r1 >>= r2", MIN64, 63, 1),
    ("r1 >>= r2", MIN64, 127, 1),
    ("r1 >>= 32", HIGH, 0, 0xDEAD_BEEF),
    ("w1 >>= w2", HIGH | 0x8000_0000, 31, 1),
    ("w1 >>= w2", HIGH | 2, 33, 1),
    ("w1 >>= 4", HIGH | 0x10, 0, 1),
    ("r1 s>>= r2", MIN64, 63, MAX),
    ("r1 s>>= r2", MIN64, 65, 0xC000_0000_0000_0000),
    ("r1 s>>= 3", 0x40, 0, 8),
    ("w1 s>>= w2", 0x8000_0000, 31, 0xFFFF_FFFF),
    ("w1 s>>= w2", HIGH | 0x4000_0000, 62, 1),
    ("w1 s>>= 1", MAX, 0, 0xFFFF_FFFF),
    ("r1 = -r1", 1, 0, MAX),
    ("r1 = -r1", MIN64, 0, MIN64),
    ("r1 = -r1", 0, 0, 0),
    ("w1 = -w1", HIGH | 1, 0, 0xFFFF_FFFF),
    ("w1 = -w1", 0x8000_0000, 0, 0x8000_0000),
    ("r1 = le16 r1", 0x1122_3344_5566_7788, 0, 0x7788),
    ("r1 = le32 r1", 0x1122_3344_5566_7788, 0, 0x5566_7788),
    ("r1 = le64 r1", 0x1122_3344_5566_7788, 0, 0x1122_3344_5566_7788),
    ("r1 = be16 r1", 0x1122_3344_5566_7788, 0, 0x8877),
    ("r1 = be32 r1", 0x1122_3344_5566_7788, 0, 0x8877_6655),
    ("r1 = be64 r1", 0x1122_3344_5566_7788, 0, 0x8877_6655_4433_2211),
]

# (condition, r1, r2, taken?)
CONDITIONS = [
    ("r1 == r2", HIGH, HIGH, True),
    ("r1 == r2", HIGH, 0, False),
    ("r1 == -1", MAX, 0, True),
    ("r1 == -1", 0xFFFF_FFFF, 0, False),
    ("w1 == w2", HIGH | 1, 1, True),
    ("w1 == -1", 0xFFFF_FFFF, 0, True),
    ("r1 != r2", HIGH, 0, True),
    ("r1 != -1", MAX, 0, False),
    ("w1 != w2", HIGH, 0, False),
    ("w1 != 1", HIGH | 1, 0, False),
    ("r1 > r2", MAX, 1, True),
    ("r1 > r2", 1, 1, False),
    ("r1 > -1", MAX, 0, False),
    ("w1 > w2", HIGH | 1, 2, False),
    ("w1 > -2", 0xFFFF_FFFF, 0, True),
    ("r1 >= r2", 1, 1, True),
    ("r1 >= -1", 0, 0, False),
    ("w1 >= w2", 1, HIGH | 1, True),
    ("w1 >= -1", MAX, 0, True),
    ("r1 < r2", 1, MAX, True),
    ("r1 < -1", MAX, 0, False),
    ("w1 < w2", HIGH, 1, True),
    ("w1 < -1", 0xFFFF_FFFE, 0, True),
    ("r1 <= r2", MAX, 1, False),
    ("r1 <= -1", MAX, 0, True),
    ("w1 <= w2", HIGH | 1, 1, True),
    ("w1 <= 0", HIGH | 1, 0, False),
    ("r1 & r2", 0b0110, 0b0100, True),
    ("r1 & r2", 0b0110, 0b1001, False),
    ("r1 & -2147483648", HIGH, 0, True),  # the mask is sign-extended
    ("w1 & w2", HIGH, HIGH, False),
    ("w1 & -2147483648", HIGH, 0, False),
    ("r1 s> r2", 1, MAX, True),
    ("r1 s> r2", MIN64, 0, False),
    ("r1 s> -1", 0, 0, True),
    ("w1 s> w2", 1, 0xFFFF_FFFF, True),
    ("w1 s> -5", 0xFFFF_FFFB, 0, False),
    ("r1 s>= r2", MAX, MAX, True),
    ("r1 s>= -1", MAX - 1, 0, False),
    ("w1 s>= w2", HIGH, 0xFFFF_FFFF, True),
    ("w1 s>= -1", HIGH | 0xFFFF_FFFF, 0, True),
    ("r1 s< r2", MIN64, 0x7FFF_FFFF_FFFF_FFFF, True),
    ("r1 s< -1", 0xFFFF_FFFF, 0, False),
    ("w1 s< w2", 0x8000_0000, 0x7FFF_FFFF, True),
    ("w1 s< -1", 0xFFFF_FFFE, 0, True),
    ("r1 s<= r2", MAX, 0, True),
    ("r1 s<= -1", 0, 0, False),
    ("w1 s<= w2", HIGH, HIGH, True),
    ("w1 s<= -1", 0xFFFF_FFFF, 0, True),
]

registers = st.integers(0, MAX) | st.sampled_from([0, 1, MAX, MIN64, HIGH, 0xFFFF_FFFF, 1 << 31])


def one(text: str) -> Insn:
    (insn,) = assemble(text)
    return insn


@pytest.mark.parametrize(("text", "r1", "r2", "expected"), ARITHMETIC)
def test_arithmetic(text: str, r1: int, r2: int, expected: int) -> None:
    regs = [0, r1, r2]

    alu.step(one(text), regs)

    assert expected == regs[1]


@pytest.mark.parametrize(("condition", "r1", "r2", "expected"), CONDITIONS)
def test_conditions(condition: str, r1: int, r2: int, expected: bool) -> None:
    assert expected is alu.taken(one(f"if {condition} goto +1"), [0, r1, r2])


def test_the_tables_above_name_every_opcode() -> None:
    arithmetic = {code for code in OPCODES if code & 7 in (0x04, 0x07)}
    conditional = {code for code in OPCODES if code & 7 in (0x05, 0x06)} - {0x05, 0x85, 0x95}

    assert arithmetic == {one(row[0]).code for row in ARITHMETIC} == alu.ALU.keys()
    assert conditional == {one(f"if {row[0]} goto +1").code for row in CONDITIONS} == alu.JMP.keys()


# The same operations as C computes them, on its own types.
C64 = {
    "+=": lambda a, b: c_uint64(a + b),
    "-=": lambda a, b: c_uint64(a - b),
    "*=": lambda a, b: c_uint64(c_int64(a).value * c_int64(b).value),
    "|=": lambda a, b: c_uint64(c_int64(a).value | c_int64(b).value),
    "&=": lambda a, b: c_uint64(c_int64(a).value & c_int64(b).value),
    "^=": lambda a, b: c_uint64((a | b) - (a & b)),
    "<<=": lambda a, b: c_uint64(a * 2 ** (b & 63)),
    ">>=": lambda a, b: c_uint64(a // 2 ** (b & 63)),
    "s>>=": lambda a, b: c_uint64(c_int64(a).value // 2 ** (b & 63)),
    "=": lambda a, b: c_uint64(b),
}
C32 = {
    "+=": lambda a, b: c_uint32(a + b),
    "-=": lambda a, b: c_uint32(a - b),
    "*=": lambda a, b: c_uint32(c_int32(a).value * c_int32(b).value),
    "|=": lambda a, b: c_uint32(c_int32(a).value | c_int32(b).value),
    "&=": lambda a, b: c_uint32(c_int32(a).value & c_int32(b).value),
    "^=": lambda a, b: c_uint32((a | b) - (a & b)),
    "<<=": lambda a, b: c_uint32(a * 2 ** (b & 31)),
    ">>=": lambda a, b: c_uint32(c_uint32(a).value // 2 ** (b & 31)),
    "s>>=": lambda a, b: c_uint32(c_int32(a).value // 2 ** (b & 31)),
    "=": lambda a, b: c_uint32(b),
}


@given(st.sampled_from(sorted(C64)), registers, registers)
def test_arithmetic_agrees_with_c(op: str, r1: int, r2: int) -> None:
    wide, narrow = [0, r1, r2], [0, r1, r2]

    alu.step(one(f"r1 {op} r2"), wide)
    alu.step(one(f"w1 {op} w2"), narrow)

    assert [0, C64[op](r1, r2).value, r2] == wide
    assert [0, C32[op](r1, r2).value, r2] == narrow


RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@pytest.mark.parametrize(
    ("shape", "ctype"),
    [
        ("r1 {} r2", c_uint64),
        ("w1 {} w2", c_uint32),
        ("r1 s{} r2", c_int64),
        ("w1 s{} w2", c_int32),
    ],
)
@given(st.sampled_from(sorted(RELATIONS)), registers, registers)
def test_comparisons_agree_with_c(
    shape: str, ctype: type[c_int64 | c_uint64 | c_int32 | c_uint32], op: str, r1: int, r2: int
) -> None:
    signed = "s{" in shape and op not in ("==", "!=")  # there is no signed equality
    condition = shape.format(op) if signed else shape.replace("s{", "{").format(op)
    expected = RELATIONS[op](ctype(r1).value, ctype(r2).value)

    assert expected is alu.taken(one(f"if {condition} goto +1"), [0, r1, r2])


@given(registers, st.integers(-(2**31), 2**31 - 1), st.sampled_from(sorted(alu.ALU.keys())))
def test_results_are_registers_and_32_bit_results_are_zero_extended(
    dst: int, imm: int, code: int
) -> None:
    operand = {0xD4: 32, 0xDC: 16}.get(code, imm & MAX)
    result = alu.ALU[code](dst, operand)

    remainder_by_zero = code == 0x9C and operand & 0xFFFF_FFFF == 0
    assert 0 <= result <= (MAX if code & 7 == 7 or remainder_by_zero else 0xFFFF_FFFF)


@given(registers)
def test_a_byte_swap_is_its_own_inverse(value: int) -> None:
    regs = [0, value]
    swap = one("r1 = be64 r1")

    alu.step(swap, regs)
    assert list(value.to_bytes(8, "little")) == list(regs[1].to_bytes(8, "big"))
    alu.step(swap, regs)
    assert value == regs[1]


# Division, as the verifier of v5.10 rewrites it.


def guarded(insn: Insn, regs: list[int]) -> None:
    """Runs the guard that v5.10 puts around a division by a register, then the plain division."""
    narrow = insn.code & 7 == 0x04
    mask = 0xFFFF_FFFF if narrow else MAX
    if narrow:
        alu.step(BPF_MOV32_REG(insn.src, insn.src), regs)
    if alu.taken(one(f"if r{insn.src} != 0 goto +1"), regs):
        quotient, remainder = divmod(regs[insn.dst] & mask, regs[insn.src] & mask)
        regs[insn.dst] = quotient if insn.code & 0xF0 == BPF_DIV else remainder
    elif insn.code & 0xF0 == BPF_DIV:
        alu.step(one(f"w{insn.dst} ^= w{insn.dst}"), regs)


@given(
    st.sampled_from([BPF_ALU32_REG, BPF_ALU64_REG]),
    st.sampled_from([BPF_DIV, BPF_MOD]),
    st.integers(1, 2),
    registers,
    registers,
)
def test_a_division_is_what_its_guard_makes_of_it(
    macro: type[Insn], op: int, src: int, r1: int, r2: int
) -> None:
    insn = macro(op, 1, src)
    expected, actual = [0, r1, r2], [0, r1, r2]

    guarded(insn, expected)
    alu.step(insn, actual)

    assert expected == actual


@pytest.mark.parametrize("text", ["w1 /= w2", "w1 %= w2"])
def test_a_32_bit_division_truncates_the_register_of_its_divisor(text: str) -> None:
    regs = [0, HIGH | 9, HIGH | 5]

    alu.step(one(text), regs)

    assert regs[2] == 5


@pytest.mark.parametrize("text", ["r1 /= r2", "r1 %= r2", "w1 += w2", "w1 >>= w2"])
def test_nothing_else_touches_the_source_register(text: str) -> None:
    regs = [0, HIGH | 9, HIGH | 5]

    alu.step(one(text), regs)

    assert regs[2] == HIGH | 5


def test_a_32_bit_remainder_of_a_register_by_itself() -> None:
    regs = [0, HIGH]  # the low half is zero, so the guard finds zero; but it truncated r1 before

    alu.step(one("w1 %= w1"), regs)

    assert regs == [0, 0]


# Wrong use.


@pytest.mark.parametrize("text", ["exit", "goto +1", "call 1", "r1 = *(u32 *)(r2 +0)"])
def test_what_is_no_arithmetic_and_no_condition_is_refused(text: str) -> None:
    with pytest.raises(KeyError):
        alu.step(one(text), [0] * 11)
    with pytest.raises(KeyError):
        alu.taken(one(text), [0] * 11)
