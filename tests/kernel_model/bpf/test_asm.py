"""The assembler's own language: labels, names, spellings; and what it says to a mistake."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_model.bpf import insn as bpf
from kernel_model.bpf.asm import AsmError, assemble
from kernel_model.bpf.helper_ids import BPF_FUNC
from kernel_model.bpf.insn import Insn

MAPS = {"outer": 3, "values": 4, "id:468": 5}

EXIT = bpf.BPF_EXIT_INSN()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r1 += 272", bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 1, 272)),
        ("r1+=0x110", bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 1, 272)),
        ("  r1   +=   + 272  ", bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 1, 272)),
        ("r1 = -0x5", bpf.BPF_MOV64_IMM(1, -5)),
        ("w1 = 0xffffffff", bpf.BPF_MOV32_IMM(1, -1)),
        ("w0=-1", bpf.BPF_MOV32_IMM(0, -1)),
        ("r1 = 0x7fffffff", bpf.BPF_MOV64_IMM(1, 2**31 - 1)),
        ("r2 = 010", bpf.BPF_MOV64_IMM(2, 10)),
        ("r1 s>>=3", bpf.BPF_ALU64_IMM(bpf.BPF_ARSH, 1, 3)),
        ("r1=-r1", bpf.BPF_ALU64_IMM(bpf.BPF_NEG, 1, 0)),
        ("r0 = *(u32*)(r2+0)", bpf.BPF_LDX_MEM(bpf.BPF_W, 0, 2, 0)),
        ("r0 = * ( u32 * ) ( r2 + 0x10 )", bpf.BPF_LDX_MEM(bpf.BPF_W, 0, 2, 16)),
        ("*(u8 *)(r10 - 1) = 0xff", bpf.BPF_ST_MEM(bpf.BPF_B, 10, -1, 255)),
        ("*(u32 *)(r10 -4) = 0xffffffff", bpf.BPF_ST_MEM(bpf.BPF_W, 10, -4, -1)),
        ("lock *(u64 *)(r0+0) += r1", bpf.BPF_STX_XADD(bpf.BPF_DW, 0, 1, 0)),
        ("r0 = *(u16 *)skb[12]", bpf.BPF_LD_ABS(bpf.BPF_H, 12)),
        ("r0 = *(u8 *)skb[r6+14]", bpf.BPF_LD_IND(bpf.BPF_B, 6, 14)),
        ("if r0 == 0 goto +6", bpf.BPF_JMP_IMM(bpf.BPF_JEQ, 0, 0, 6)),
        ("if r0==0x0 goto pc+6", bpf.BPF_JMP_IMM(bpf.BPF_JEQ, 0, 0, 6)),
        ("if w1 s> -5 goto -2", bpf.BPF_JMP32_IMM(bpf.BPF_JSGT, 1, -5, -2)),
        ("if r1 & 4 goto pc + 0", bpf.BPF_JMP_IMM(bpf.BPF_JSET, 1, 4, 0)),
        ("if r1 s<= r2 goto +1", bpf.BPF_JMP_REG(bpf.BPF_JSLE, 1, 2, 1)),
        ("goto pc-1", bpf.BPF_JMP_A(-1)),
        ("call 1", bpf.BPF_EMIT_CALL(1)),
        ("call 0x7", bpf.BPF_EMIT_CALL(7)),
        ("call bpf_tail_call", bpf.BPF_EMIT_CALL(BPF_FUNC.tail_call)),
        ("call pc+3", bpf.BPF_CALL_REL(3)),
        ("12: (61) r0 = *(u32 *)(r2 +0)", bpf.BPF_LDX_MEM(bpf.BPF_W, 0, 2, 0)),
        ("  7: exit", EXIT),
        ("(95) exit ; done", EXIT),
        ("exit // done; really", EXIT),
    ],
)
def test_spellings(text: str, expected: Insn) -> None:
    assert assemble(text) == (expected,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r1 = 0x123456789abcdef ll", bpf.BPF_LD_IMM64(1, 0x0123_4567_89AB_CDEF)),
        ("r1 = -1 ll", bpf.BPF_LD_IMM64(1, -1)),
        ("(18) r1 = 0x5", bpf.BPF_LD_IMM64(1, 5)),
        ("(18) r1 = 5 ll", bpf.BPF_LD_IMM64(1, 5)),
        ("r1 = map[outer]", bpf.BPF_LD_MAP_FD(1, 3)),
        ("r1 = map[id:468]", bpf.BPF_LD_MAP_FD(1, 5)),
        ("r1 = map[fd:77]", bpf.BPF_LD_MAP_FD(1, 77)),
        ("r1 = map[fd:-1]", bpf.BPF_LD_MAP_FD(1, -1)),
        ("r1 = map_value[values]", bpf.BPF_LD_MAP_VALUE(1, 4, 0)),
        ("r1 = map_value[values]+8", bpf.BPF_LD_MAP_VALUE(1, 4, 8)),
        ("r1 = map_value[fd:9] + 0x10", bpf.BPF_LD_MAP_VALUE(1, 9, 16)),
        ("r1 = map[values][0]+8", bpf.BPF_LD_MAP_VALUE(1, 4, 8)),
    ],
)
def test_64_bit_constants(text: str, expected: tuple[Insn, Insn]) -> None:
    assert assemble(text, MAPS) == expected


def test_labels_count_in_instructions_of_eight_bytes() -> None:
    program = assemble("""
        again:
            r1 = 5 ll            ; two
            if r1 > 3 goto out
            if w1 != 3 goto again
            goto out
            r1 = map[fd:3]       ; two
        out: exit
    """)

    jumps = {index: insn.off for index, insn in enumerate(program) if insn.off}
    assert jumps == {2: 4, 3: -4, 4: 2}


def test_functions_are_called_by_label() -> None:
    program = assemble("""
        first:  second:
            call twice
            exit
        twice:
            call bpf_ktime_get_ns
            call first
            exit
    """)

    assert [insn for insn in program if insn != EXIT] == [
        bpf.BPF_CALL_REL(1),
        bpf.BPF_EMIT_CALL(BPF_FUNC.ktime_get_ns),
        bpf.BPF_CALL_REL(-4),
    ]


def test_a_label_hides_a_helper_of_the_same_name() -> None:
    program = assemble("call bpf_redirect\nexit\nbpf_redirect: exit")

    assert program[0] == bpf.BPF_CALL_REL(1)


def test_a_label_may_stand_at_the_end() -> None:
    assert assemble("goto out\nout:") == (bpf.BPF_JMP_A(0),)


def test_nothing_is_an_empty_program() -> None:
    assert assemble("\n  ; nothing\n// at all\n") == ()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20))
def test_a_jump_to_a_label_lands_on_it(targets: list[int]) -> None:
    count = len(targets)
    lines = [f"l{index}: goto l{target % count}" for index, target in enumerate(targets)]

    program = assemble("\n".join(lines))

    landed = [index + 1 + insn.off for index, insn in enumerate(program)]
    assert landed == [target % count for target in targets]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("r1 = *(u31 *)(r2 +0)", "expected one of u32 u16 u8 u64, after `r1 = * (`"),
        ("r0 = *(u32 *)r2", "expected `(` or `skb`, after `r0 = * ( u32 * )`"),
        ("r0 = *(u32 *)(w2 +0)", "expected a register (r0 to r10), after `r0 = * ( u32 * ) (`"),
        ("r0 = *(u32 *)(r2)", "expected an offset such as +8 or -4, after `r0 = * ( u32 * ) ( r2`"),
        ("*(u32 *)(r1 +40000) = 1", "off 40000 is not in -32768..32767"),
        ("*(u64 *)(r1 +0) = 0xffffffff", "0xffffffff does not fit in 32 bits signed"),
        ("lock *(u64 *)(r1 +0) -= r1", "expected `+=`, after"),
        (
            "if r1 > goto x",
            "expected a register (r0 to r10, w0 to w10) or a number, after `if r1 >`",
        ),
        ("if r1 s== 5 goto +1", "expected one of == > < >= <= & != s> s< s>= s<=, after `if r1`"),
        ("if r1 == 0", "expected `goto`, after `if r1 == 0`"),
        ("if r1 == w2 goto +1", "`r1` and `w2` differ in width"),
        ("if r1 == 0x100000000 goto +1", "immediate 4294967296 does not fit in 32 bits"),
        ("goto 5", "expected a label, +N or pc+N, after `goto`"),
        ("goto nowhere", "there is no label `nowhere`"),
        ("goto pc+40000", "off 40000 is not in -32768..32767"),
        ("x: x: exit", "there are two labels `x`"),
        ("r1 = w2", "`r1` and `w2` differ in width: write two r or two w registers"),
        ("w1 = -w2", "a negation works in place, but `w1` is not `w2`"),
        ("r1 = be16 r2", "a byte swap works in place, but `r1` is not `r2`"),
        ("r1 = be24 r1", "expected"),
        ("r1 = 0xffffffff", "`r1 = 0xffffffff ll` loads it"),
        ("r1 += 0x80000000", "0x80000000 does not fit in 32 bits signed"),
        ("r1 = 0x10000000000000000 ll", "does not fit in 64 bits"),
        ("w1 = 5 ll", "expected the end of the line, after `w1 = 5`"),
        ("r11 = 0", "a register (r0 to r10)"),
        ("r1 = 5 5", "expected `ll` or the end of the line, after `r1 = 5`"),
        ("r1 @ 3", "after `r1`"),
        ("r1 = map[inner]", "there is no map `inner`; known maps: outer, values, id:468"),
        ("r1 = map[outer]+8", "a map has no offset, its value has: map_value[outer]+8"),
        ("call bpf_nope", "`bpf_nope` is no label, and no helper of v5.10"),
        ("call bpf_map_lookup_elem#2", "helper 2 is called `bpf_map_update_elem`"),
        ("call 99999999999", "imm 99999999999 is not in -2147483648..2147483647"),
        ("exit 3", "expected the end of the line, after `exit`"),
        ("mov r1, 5", "expected `exit`, `goto`, `if`, `call`, "),
    ],
)
def test_a_mistake_is_answered_with_what_was_expected(text: str, problem: str) -> None:
    with pytest.raises(AsmError) as caught:
        assemble(f"r0 = 0\n\n  {text}\nexit", MAPS)

    assert problem in caught.value.problem
    assert (caught.value.lineno, caught.value.line) == (3, f"  {text}")
    assert str(caught.value) == f"line 3: {text!r}: {caught.value.problem}"


def test_a_map_without_any_maps() -> None:
    with pytest.raises(AsmError, match=r"there is no map `m`; known maps: none$"):
        assemble("r1 = map[m]")


@given(st.text(alphabet="rwuif0189x +-*=<>&()[]:;sgotlckpbma_#{}\n", max_size=60))
def test_any_text_is_a_program_or_an_asm_error(text: str) -> None:
    with contextlib.suppress(AsmError):
        assert all(isinstance(insn, Insn) for insn in assemble(text, MAPS))
