"""The kernel's text for every opcode, and the assembler reads all of it back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_model.bpf import insn as bpf
from kernel_model.bpf.asm import assemble
from kernel_model.bpf.disasm import listing, print_bpf_insn
from kernel_model.bpf.helper_ids import BPF_FUNC, BPF_FUNC_MAX_ID, func_id_name
from kernel_model.bpf.insn import OPCODES, Insn, decode

# One line or more for each opcode: the bytes of the instruction, its text.
TEXTS = """
18 01 0000 efcdab89 00000000 67452301 | r1 = 0x123456789abcdef
18 01 0000 05000000 00000000 00000000 | r1 = 0x5
18 01 0000 ffffffff 00000000 ffffffff | r1 = 0xffffffffffffffff
18 1a 0000 05000000 00000000 00000000 | r10 = map[fd:5]
18 21 0000 05000000 00000000 08000000 | r1 = map[fd:5][0]+8
20 00 0000 0c000000 | r0 = *(u32 *)skb[12]
28 00 0000 fcffffff | r0 = *(u16 *)skb[-4]
30 00 0000 17000000 | r0 = *(u8 *)skb[23]
40 60 0000 00000000 | r0 = *(u32 *)skb[r6 + 0]
48 70 0000 feffffff | r0 = *(u16 *)skb[r7 + -2]
50 60 0000 0e000000 | r0 = *(u8 *)skb[r6 + 14]
61 20 0000 00000000 | r0 = *(u32 *)(r2 +0)
69 21 0200 00000000 | r1 = *(u16 *)(r2 +2)
71 a1 ffff 00000000 | r1 = *(u8 *)(r10 -1)
79 a1 f8ff 00000000 | r1 = *(u64 *)(r10 -8)
62 0a fcff 01000000 | *(u32 *)(r10 -4) = 1
6a 01 0000 ffffffff | *(u16 *)(r1 +0) = -1
72 01 0700 00000000 | *(u8 *)(r1 +7) = 0
7a 01 0800 07000000 | *(u64 *)(r1 +8) = 7
63 1a fcff 00000000 | *(u32 *)(r10 -4) = r1
6b 21 0000 00000000 | *(u16 *)(r1 +0) = r2
73 21 0100 00000000 | *(u8 *)(r1 +1) = r2
7b 21 1000 00000000 | *(u64 *)(r1 +16) = r2
c3 10 0400 00000000 | lock *(u32 *)(r0 +4) += r1
db 10 0000 00000000 | lock *(u64 *)(r0 +0) += r1
04 01 0000 ffffffff | w1 += -1
0c 21 0000 00000000 | w1 += w2
14 01 0000 01000000 | w1 -= 1
1c 21 0000 00000000 | w1 -= w2
24 01 0000 03000000 | w1 *= 3
2c 21 0000 00000000 | w1 *= w2
34 01 0000 02000000 | w1 /= 2
3c 21 0000 00000000 | w1 /= w2
44 01 0000 80000000 | w1 |= 128
4c 21 0000 00000000 | w1 |= w2
54 01 0000 ff000000 | w1 &= 255
5c 21 0000 00000000 | w1 &= w2
64 01 0000 1f000000 | w1 <<= 31
6c 21 0000 00000000 | w1 <<= w2
74 01 0000 1f000000 | w1 >>= 31
7c 21 0000 00000000 | w1 >>= w2
84 01 0000 00000000 | w1 = -w1
94 01 0000 0a000000 | w1 %= 10
9c 21 0000 00000000 | w1 %= w2
a4 01 0000 01000000 | w1 ^= 1
ac 21 0000 00000000 | w1 ^= w2
b4 01 0000 00000000 | w1 = 0
bc 21 0000 00000000 | w1 = w2
c4 01 0000 03000000 | w1 s>>= 3
cc 21 0000 00000000 | w1 s>>= w2
d4 01 0000 10000000 | r1 = le16 r1
d4 01 0000 40000000 | r1 = le64 r1
dc 01 0000 10000000 | r1 = be16 r1
dc 01 0000 20000000 | r1 = be32 r1
07 01 0000 10010000 | r1 += 272
0f 21 0000 00000000 | r1 += r2
17 01 0000 00000080 | r1 -= -2147483648
1f 21 0000 00000000 | r1 -= r2
27 01 0000 03000000 | r1 *= 3
2f 21 0000 00000000 | r1 *= r2
37 01 0000 02000000 | r1 /= 2
3f 21 0000 00000000 | r1 /= r2
47 01 0000 80000000 | r1 |= 128
4f 21 0000 00000000 | r1 |= r2
57 01 0000 f8ffffff | r1 &= -8
5f 21 0000 00000000 | r1 &= r2
67 01 0000 20000000 | r1 <<= 32
6f 21 0000 00000000 | r1 <<= r2
77 01 0000 20000000 | r1 >>= 32
7f 21 0000 00000000 | r1 >>= r2
87 01 0000 00000000 | r1 = -r1
97 01 0000 0a000000 | r1 %= 10
9f 21 0000 00000000 | r1 %= r2
a7 01 0000 01000000 | r1 ^= 1
af 21 0000 00000000 | r1 ^= r2
b7 00 0000 01000000 | r0 = 1
bf a2 0000 00000000 | r2 = r10
c7 01 0000 20000000 | r1 s>>= 32
cf 21 0000 00000000 | r1 s>>= r2
05 00 0600 00000000 | goto pc+6
05 00 ffff 00000000 | goto pc-1
15 00 0600 00000000 | if r0 == 0x0 goto pc+6
1d 21 0100 00000000 | if r1 == r2 goto pc+1
25 01 0100 ff000000 | if r1 > 0xff goto pc+1
2d 21 0100 00000000 | if r1 > r2 goto pc+1
35 00 0500 03000000 | if r0 >= 0x3 goto pc+5
3d 21 0100 00000000 | if r1 >= r2 goto pc+1
45 01 0100 04000000 | if r1 & 0x4 goto pc+1
4d 21 0100 00000000 | if r1 & r2 goto pc+1
55 01 f0ff ffffffff | if r1 != 0xffffffff goto pc-16
5d 21 0100 00000000 | if r1 != r2 goto pc+1
65 01 0100 01000000 | if r1 s> 0x1 goto pc+1
6d 21 0100 00000000 | if r1 s> r2 goto pc+1
75 01 0100 01000000 | if r1 s>= 0x1 goto pc+1
7d 21 0100 00000000 | if r1 s>= r2 goto pc+1
85 00 0000 01000000 | call bpf_map_lookup_elem#1
85 00 0000 0c000000 | call bpf_tail_call#12
85 00 0000 e7030000 | call unknown#999
85 10 0000 03000000 | call pc+3
85 10 0000 fdffffff | call pc-3
95 00 0000 00000000 | exit
a5 01 0100 01000000 | if r1 < 0x1 goto pc+1
ad 21 0100 00000000 | if r1 < r2 goto pc+1
b5 01 0100 01000000 | if r1 <= 0x1 goto pc+1
bd 21 0100 00000000 | if r1 <= r2 goto pc+1
c5 01 0100 00000080 | if r1 s< 0x80000000 goto pc+1
cd 21 0100 00000000 | if r1 s< r2 goto pc+1
d5 01 0100 01000000 | if r1 s<= 0x1 goto pc+1
dd 21 0100 00000000 | if r1 s<= r2 goto pc+1
16 01 0100 00000000 | if w1 == 0x0 goto pc+1
1e 21 0100 00000000 | if w1 == w2 goto pc+1
26 01 0100 01000000 | if w1 > 0x1 goto pc+1
2e 21 0100 00000000 | if w1 > w2 goto pc+1
36 01 0100 01000000 | if w1 >= 0x1 goto pc+1
3e 21 0100 00000000 | if w1 >= w2 goto pc+1
46 01 0100 01000000 | if w1 & 0x1 goto pc+1
4e 21 0100 00000000 | if w1 & w2 goto pc+1
56 01 0100 01000000 | if w1 != 0x1 goto pc+1
5e 21 0100 00000000 | if w1 != w2 goto pc+1
66 01 0100 fbffffff | if w1 s> 0xfffffffb goto pc+1
6e 21 0100 00000000 | if w1 s> w2 goto pc+1
76 01 0100 01000000 | if w1 s>= 0x1 goto pc+1
7e 21 0100 00000000 | if w1 s>= w2 goto pc+1
a6 01 0100 01000000 | if w1 < 0x1 goto pc+1
ae 21 0100 00000000 | if w1 < w2 goto pc+1
b6 01 0100 01000000 | if w1 <= 0x1 goto pc+1
be 21 0100 00000000 | if w1 <= w2 goto pc+1
c6 01 0100 01000000 | if w1 s< 0x1 goto pc+1
ce 21 0100 00000000 | if w1 s< w2 goto pc+1
d6 01 0100 01000000 | if w1 s<= 0x1 goto pc+1
de 21 0100 00000000 | if w1 s<= w2 goto pc+1
"""
ROWS = [tuple(line.split(" | ")) for line in TEXTS.strip().splitlines()]

PROGRAM = """\
   0: (b4) w1 = 0
   1: (63) *(u32 *)(r10 -4) = r1
   2: (bf) r2 = r10
   3: (07) r2 += -4
   4: (18) r1 = map[id:468]
   6: (85) call bpf_map_lookup_elem#1
   7: (15) if r0 == 0x0 goto pc+3
   8: (18) r1 = 0x1
  10: (db) lock *(u64 *)(r0 +0) += r1
  11: (95) exit
"""


@pytest.mark.parametrize(("data", "text"), ROWS)
def test_text_and_bytes(data: str, text: str) -> None:
    program = decode(bytes.fromhex(data))
    line = f"({data[:2]}) {text}"

    assert line == print_bpf_insn(program[0], program[1] if len(program) == 2 else None)
    assert program == assemble(line)


def test_the_table_above_names_every_opcode() -> None:
    assert {int(data[:2], 16) for data, _ in ROWS} == OPCODES


def test_a_listing_looks_like_that_of_bpftool() -> None:
    program = assemble(PROGRAM, {"id:468": 468})

    assert listing(program, name_of_map=lambda number: f"id:{number}") == PROGRAM
    assert len(program) == 12


def test_a_map_is_named_by_the_number_in_its_instruction() -> None:
    names = {5: "outer", 6: "counters"}
    program = (*bpf.BPF_LD_MAP_FD(1, 5), *bpf.BPF_LD_MAP_VALUE(2, 6, 16))

    assert listing(program, names.__getitem__).splitlines() == [
        "   0: (18) r1 = map[outer]",
        "   2: (18) r2 = map[counters][0]+16",
    ]


def test_the_internal_tail_call_is_shown_as_the_call_it_was() -> None:
    tail_call = Insn(bpf.BPF_JMP | bpf.BPF_TAIL_CALL, imm=1)

    assert print_bpf_insn(tail_call) == "(85) call bpf_tail_call#12"


@pytest.mark.parametrize("code", sorted(set(range(256)) - OPCODES - {0xF5}))
def test_what_is_no_instruction_is_printed_as_a_bug(code: int) -> None:
    assert print_bpf_insn(Insn(code)) == f"BUG_{code:02x}"


def test_half_a_constant_is_printed_as_a_bug() -> None:
    first, _ = bpf.BPF_LD_IMM64(1, 5)

    assert listing([first]) == "   0: BUG_18\n"


# Random valid instructions.

reg = st.integers(0, 10)
off = st.integers(-(2**15), 2**15 - 1)
imm = st.integers(-(2**31), 2**31 - 1)


@st.composite
def statements(draw: st.DrawFn) -> tuple[Insn, ...]:
    """One instruction with only the fields set that it uses."""
    code = draw(st.sampled_from(sorted(OPCODES)))
    kind, source, op = bpf.BPF_CLASS(code), bpf.BPF_SRC(code), bpf.BPF_OP(code)
    if code == 0x18:
        pseudo = draw(st.sampled_from([0, bpf.BPF_PSEUDO_MAP_FD, bpf.BPF_PSEUDO_MAP_VALUE]))
        second = 0 if pseudo == bpf.BPF_PSEUDO_MAP_FD else draw(imm)
        return Insn(code, draw(reg), pseudo, imm=draw(imm)), Insn(0, imm=second)
    if code == 0x85:
        return (Insn(code, src=draw(st.sampled_from([0, bpf.BPF_PSEUDO_CALL])), imm=draw(imm)),)
    if code in (0x05, 0x95):
        return (Insn(code, off=draw(off) if code == 0x05 else 0),)
    if kind == bpf.BPF_LD:
        indirect = bpf.BPF_MODE(code) == bpf.BPF_IND
        return (Insn(code, src=draw(reg) if indirect else 0, imm=draw(imm)),)
    if kind in (bpf.BPF_LDX, bpf.BPF_STX):
        return (Insn(code, draw(reg), draw(reg), draw(off)),)
    if kind == bpf.BPF_ST:
        return (Insn(code, draw(reg), off=draw(off), imm=draw(imm)),)
    jumps = draw(off) if kind in (bpf.BPF_JMP, bpf.BPF_JMP32) else 0
    if kind == bpf.BPF_ALU and op == bpf.BPF_END:
        return (Insn(code, draw(reg), imm=draw(st.sampled_from([16, 32, 64]))),)
    if kind in (bpf.BPF_ALU, bpf.BPF_ALU64) and op == bpf.BPF_NEG:
        return (Insn(code, draw(reg)),)
    if source == bpf.BPF_X:
        return (Insn(code, draw(reg), draw(reg), jumps),)
    return (Insn(code, draw(reg), off=jumps, imm=draw(imm)),)


@given(st.lists(statements()))
def test_the_assembler_reads_back_what_is_printed(program: list[tuple[Insn, ...]]) -> None:
    insns = tuple(insn for statement in program for insn in statement)

    assert insns == assemble(listing(insns))


@pytest.mark.parametrize("name", ["id:468", "outer", "per-CPU counters", "a.b/c", "map[x"])
def test_the_name_of_a_map_may_look_like_anything(name: str) -> None:
    program = (*bpf.BPF_LD_MAP_FD(1, 5), *bpf.BPF_LD_MAP_VALUE(2, 5, 8))
    text = listing(program, name_of_map=lambda number: name)

    assert f"map[{name}]" in text
    assert program == assemble(text, {name: 5})


# Helpers.


def test_the_helpers_are_those_of_v5_10() -> None:
    known = {0: "unspec", 1: "map_lookup_elem", 12: "tail_call", 93: "spin_lock"}
    known |= {112: "probe_read_user", 126: "seq_printf", 130: "ringbuf_output"}
    known |= {148: "copy_from_user", 155: "redirect_peer"}

    assert BPF_FUNC_MAX_ID == 156
    assert list(range(156)) == [int(func) for func in BPF_FUNC]
    for func_id, name in known.items():
        assert BPF_FUNC(func_id).name == name
        assert func_id_name(func_id) == f"bpf_{name}"


@pytest.mark.parametrize("func_id", [-1, 156, 999])
def test_a_number_without_a_helper_is_unknown(func_id: int) -> None:
    assert func_id_name(func_id) == "unknown"
