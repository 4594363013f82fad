"""Encoding: every opcode has its byte, every macro its eight bytes, and bytes come back."""

import ctypes
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_model.bpf import insn as bpf
from kernel_model.bpf.insn import Insn, InsnError, decode, encode

# The instruction set of v5.10 by class, written down opcode by opcode.
ISA = {
    "ld": "18 20 28 30 40 48 50",
    "ldx": "61 69 71 79",
    "st": "62 6a 72 7a",
    "stx": "63 6b 73 7b c3 db",
    "alu": "04 0c 14 1c 24 2c 34 3c 44 4c 54 5c 64 6c 74 7c 84 94 9c a4 ac b4 bc c4 cc d4 dc",
    "jmp": "05 15 1d 25 2d 35 3d 45 4d 55 5d 65 6d 75 7d 85 95 a5 ad b5 bd c5 cd d5 dd",
    "jmp32": "16 1e 26 2e 36 3e 46 4e 56 5e 66 6e 76 7e a6 ae b6 be c6 ce d6 de",
    "alu64": "07 0f 17 1f 27 2f 37 3f 47 4f 57 5f 67 6f 77 7f 87 97 9f a7 af b7 bf c7 cf",
}

ENCODED = [
    (bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 1, 272), "07 01 0000 10010000"),
    (bpf.BPF_ALU64_REG(bpf.BPF_SUB, 1, 2), "1f 21 0000 00000000"),
    (bpf.BPF_ALU32_IMM(bpf.BPF_AND, 9, 0xFFFF_FF00), "54 09 0000 00ffffff"),
    (bpf.BPF_ALU32_REG(bpf.BPF_XOR, 3, 3), "ac 33 0000 00000000"),
    (bpf.BPF_ALU64_IMM(bpf.BPF_NEG, 4, 0), "87 04 0000 00000000"),
    (bpf.BPF_ENDIAN(bpf.BPF_TO_BE, 0, 16), "dc 00 0000 10000000"),
    (bpf.BPF_ENDIAN(bpf.BPF_TO_LE, 0, 64), "d4 00 0000 40000000"),
    (bpf.BPF_MOV64_REG(6, 1), "bf 16 0000 00000000"),
    (bpf.BPF_MOV32_REG(6, 1), "bc 16 0000 00000000"),
    (bpf.BPF_MOV64_IMM(0, -1), "b7 00 0000 ffffffff"),
    (bpf.BPF_MOV32_IMM(0, 0x7FFF_FFFF), "b4 00 0000 ffffff7f"),
    (bpf.BPF_LD_ABS(bpf.BPF_H, 12), "28 00 0000 0c000000"),
    (bpf.BPF_LD_IND(bpf.BPF_B, 6, 14), "50 60 0000 0e000000"),
    (bpf.BPF_LDX_MEM(bpf.BPF_W, 0, 2, 0), "61 20 0000 00000000"),
    (bpf.BPF_LDX_MEM(bpf.BPF_DW, 7, 10, -8), "79 a7 f8ff 00000000"),
    (bpf.BPF_STX_MEM(bpf.BPF_B, 10, 1, -1), "73 1a ffff 00000000"),
    (bpf.BPF_STX_XADD(bpf.BPF_W, 0, 1, 4), "c3 10 0400 00000000"),
    (bpf.BPF_STX_XADD(bpf.BPF_DW, 0, 1, 0), "db 10 0000 00000000"),
    (bpf.BPF_ST_MEM(bpf.BPF_H, 1, 258, 7), "6a 01 0201 07000000"),
    (bpf.BPF_JMP_A(-1), "05 00 ffff 00000000"),
    (bpf.BPF_JMP_IMM(bpf.BPF_JGE, 0, 3, 5), "35 00 0500 03000000"),
    (bpf.BPF_JMP_REG(bpf.BPF_JSLE, 1, 2, 6), "dd 21 0600 00000000"),
    (bpf.BPF_JMP32_IMM(bpf.BPF_JSGT, 1, -5, 2), "66 01 0200 fbffffff"),
    (bpf.BPF_JMP32_REG(bpf.BPF_JEQ, 8, 9, -2), "1e 98 feff 00000000"),
    (bpf.BPF_EMIT_CALL(12), "85 00 0000 0c000000"),
    (bpf.BPF_CALL_REL(-3), "85 10 0000 fdffffff"),
    (bpf.BPF_EXIT_INSN(), "95 00 0000 00000000"),
    (Insn(bpf.BPF_JMP | bpf.BPF_TAIL_CALL), "f5 00 0000 00000000"),
]

ENCODED_WIDE = [
    (bpf.BPF_LD_IMM64(1, 0x0123_4567_89AB_CDEF), "18 01 0000 efcdab89 00 00 0000 67452301"),
    (bpf.BPF_LD_IMM64(1, 0xFFFF_FFFF), "18 01 0000 ffffffff 00 00 0000 00000000"),
    (bpf.BPF_LD_IMM64(1, -1), "18 01 0000 ffffffff 00 00 0000 ffffffff"),
    (bpf.BPF_LD_IMM64(1, 2**64 - 1), "18 01 0000 ffffffff 00 00 0000 ffffffff"),
    (bpf.BPF_LD_MAP_FD(1, 5), "18 11 0000 05000000 00 00 0000 00000000"),
    (bpf.BPF_LD_MAP_FD(1, -1), "18 11 0000 ffffffff 00 00 0000 00000000"),
    (bpf.BPF_LD_MAP_VALUE(2, 5, 8), "18 22 0000 05000000 00 00 0000 08000000"),
]


class CInsn(ctypes.LittleEndianStructure):
    """`struct bpf_insn` as C lays it out."""

    _fields_ = (
        ("code", ctypes.c_uint8),
        ("dst", ctypes.c_uint8, 4),
        ("src", ctypes.c_uint8, 4),
        ("off", ctypes.c_int16),
        ("imm", ctypes.c_int32),
    )


insns = st.builds(
    Insn,
    code=st.integers(0, 0xFF),
    dst=st.integers(0, 0xF),
    src=st.integers(0, 0xF),
    off=st.integers(-(2**15), 2**15 - 1),
    imm=st.integers(-(2**31), 2**31 - 1),
)


def test_the_opcodes_are_those_of_v5_10() -> None:
    expected = {int(code, 16) for codes in ISA.values() for code in codes.split()}

    assert expected == bpf.OPCODES
    assert len(expected) == 120


@pytest.mark.parametrize(("name", "codes"), ISA.items())
def test_the_class_is_in_the_low_bits(name: str, codes: str) -> None:
    kind = getattr(bpf, f"BPF_{name.upper()}")

    assert {kind} == {bpf.BPF_CLASS(int(code, 16)) for code in codes.split()}


def test_an_opcode_comes_apart() -> None:
    code = bpf.BPF_STX | bpf.BPF_XADD | bpf.BPF_DW
    assert (
        bpf.BPF_CLASS(code),
        bpf.BPF_MODE(code),
        bpf.BPF_SIZE(code),
    ) == (bpf.BPF_STX, bpf.BPF_XADD, bpf.BPF_DW)

    code = bpf.BPF_JMP32 | bpf.BPF_JSET | bpf.BPF_X
    assert (
        bpf.BPF_CLASS(code),
        bpf.BPF_OP(code),
        bpf.BPF_SRC(code),
    ) == (bpf.BPF_JMP32, bpf.BPF_JSET, bpf.BPF_X)


@pytest.mark.parametrize(("insn", "expected"), ENCODED, ids=[text for _, text in ENCODED])
def test_a_macro_makes_eight_bytes(insn: Insn, expected: str) -> None:
    assert bytes.fromhex(expected) == encode([insn])


@pytest.mark.parametrize(("pair", "expected"), ENCODED_WIDE)
def test_a_64_bit_constant_makes_sixteen(pair: tuple[Insn, Insn], expected: str) -> None:
    assert bytes.fromhex(expected) == encode(pair)
    assert [bpf.is_ld_imm64(insn) for insn in pair] == [True, False]


@given(insns)
def test_the_layout_is_that_of_the_c_struct(insn: Insn) -> None:
    assert bytes(CInsn(*dataclasses.astuple(insn))) == encode([insn])


@given(st.lists(insns))
def test_a_program_comes_back_from_its_bytes(program: list[Insn]) -> None:
    assert tuple(program) == decode(encode(program))


@given(st.binary(max_size=64).filter(lambda data: len(data) % 8 == 0))
def test_any_whole_number_of_instructions_can_be_decoded(data: bytes) -> None:
    assert data == encode(decode(data))


@given(st.integers(0, 2**64 - 1), st.integers(1, 64))
def test_signed_reads_twos_complement(value: int, bits: int) -> None:
    low = value % 2**bits

    assert (low if low < 2 ** (bits - 1) else low - 2**bits) == bpf.signed(value, bits)


@pytest.mark.parametrize("length", [1, 7, 9, 15])
def test_bytes_that_are_no_whole_instructions_are_refused(length: int) -> None:
    with pytest.raises(InsnError, match=rf"^{length} bytes .* {length % 8} left over$"):
        decode(bytes(length))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("code", -1),
        ("code", 256),
        ("dst", 16),
        ("src", -1),
        ("off", 2**15),
        ("off", -(2**15) - 1),
        ("imm", 2**31),
        ("imm", -(2**31) - 1),
    ],
)
def test_a_field_holds_what_its_bits_hold(field: str, value: int) -> None:
    values = {"code": 0} | {field: value}

    with pytest.raises(InsnError, match=rf"^{field} {value} is not in "):
        Insn(**values)


def test_a_macro_refuses_an_immediate_of_more_than_32_bits() -> None:
    with pytest.raises(InsnError, match=r"^immediate 4294967296 does not fit in 32 bits$"):
        bpf.BPF_MOV32_IMM(0, 2**32)
    with pytest.raises(InsnError, match=r"does not fit in 64 bits$"):
        bpf.BPF_LD_IMM64(0, 2**64)


def test_an_instruction_is_an_immutable_value() -> None:
    insn = bpf.BPF_EXIT_INSN()

    with pytest.raises(dataclasses.FrozenInstanceError):
        insn.imm = 1  # type: ignore[misc]
    assert {insn} == {bpf.BPF_EXIT_INSN()}
