"""Rewriting and light verification on random programs."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_model.bpf.check import check_program
from kernel_model.bpf.core import BpfProgramError
from kernel_model.bpf.do_check import do_check
from kernel_model.bpf.fixup import fixup_bpf_calls, patch_insns
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU32_REG,
    BPF_ALU64_IMM,
    BPF_ALU64_REG,
    BPF_CALL_REL,
    BPF_DIV,
    BPF_DW,
    BPF_EXIT_INSN,
    BPF_JEQ,
    BPF_JGT,
    BPF_JMP_A,
    BPF_JMP_IMM,
    BPF_JMP_REG,
    BPF_LD_IMM64,
    BPF_LDX_MEM,
    BPF_MOD,
    BPF_MOV64_IMM,
    BPF_MOV64_REG,
    BPF_REG_FP,
    BPF_ST_MEM,
    BPF_STX_MEM,
    BPF_W,
    BPF_XOR,
    Insn,
)
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.bpf.verifier_state import Env, ProgFacts, Refused
from kernel_model.linux.errno import ENOMEM
from tests.kernel_model.bpf.running import run_code

FACTS = ProgFacts(BPF_PROG_TYPE_RAW_TRACEPOINT, 0, "", False)
NOP = BPF_JMP_A(0)

scalars = st.integers(0, 5)
small = st.integers(-3, 40)
sizes = st.sampled_from([BPF_W, BPF_DW])
offsets = st.sampled_from([-8, -16, -20, -24, -512, -520, 0])


def binary(op: int) -> st.SearchStrategy[Insn]:
    wide = st.builds(lambda dst, src: BPF_ALU64_REG(op, dst, src), scalars, scalars)
    narrow = st.builds(lambda dst, src: BPF_ALU32_REG(op, dst, src), scalars, scalars)
    return wide | narrow


arithmetic = (
    st.builds(BPF_MOV64_IMM, scalars, small)
    | st.builds(BPF_MOV64_REG, scalars, scalars)
    | st.builds(BPF_ALU64_IMM, st.just(BPF_ADD), scalars, small)
    | binary(BPF_XOR)
    | binary(BPF_DIV)
    | binary(BPF_MOD)
)
# r6 and r7 are pointers to the stack, and nothing else.
memory = (
    st.builds(BPF_MOV64_REG, st.sampled_from([6, 7]), st.just(BPF_REG_FP))
    | st.builds(BPF_ALU64_IMM, st.just(BPF_ADD), st.sampled_from([6, 7]), st.just(-8))
    | st.builds(BPF_STX_MEM, sizes, st.sampled_from([6, 7, BPF_REG_FP]), scalars, offsets)
    | st.builds(BPF_ST_MEM, sizes, st.sampled_from([6, 7, BPF_REG_FP]), offsets, small)
    | st.builds(BPF_LDX_MEM, sizes, scalars, st.sampled_from([6, 7, BPF_REG_FP]), offsets)
)
jumps = (
    st.builds(BPF_JMP_A, st.integers(0, 5))
    | st.builds(BPF_JMP_IMM, st.sampled_from([BPF_JEQ, BPF_JGT]), scalars, small, st.integers(0, 5))
    | st.builds(BPF_JMP_REG, st.just(BPF_JGT), scalars, scalars, st.integers(0, 5))
)


def outcome(insns: Sequence[Insn]) -> int | str:
    """What running the program gives, whatever that is; errors without what depends on places."""
    try:
        return run_code(tuple(insns))
    except BpfProgramError as error:
        return str(error).rpartition(": ")[2]


@settings(deadline=None)
@given(st.lists(arithmetic | jumps, max_size=12), st.sets(st.integers(0, 26)), st.integers(0, 3))
def test_patching_keeps_the_meaning(body: list[Insn], where: set[int], longer: int) -> None:
    start = [BPF_MOV64_IMM(reg, reg) for reg in range(6)]
    body = [*start, *body, *BPF_LD_IMM64(1, 1 << 40), *[NOP] * 6, BPF_EXIT_INSN()]
    constant = {len(body) - 9, len(body) - 8}
    movable = [i for i, insn in enumerate(body) if insn.off == 0 and i not in constant]
    patches = {i: [*[NOP] * longer, body[i]] for i in movable if i in where}

    assert outcome(patch_insns(body, patches)) == outcome(body)


def test_patching_moves_calls_and_jumps_both_ways() -> None:
    body = [
        BPF_MOV64_IMM(1, 3),
        BPF_MOV64_IMM(0, 0),
        BPF_ALU64_REG(BPF_ADD, 0, 1),  # again:
        BPF_ALU64_IMM(BPF_ADD, 1, -1),
        BPF_JMP_IMM(BPF_JGT, 1, 0, -3),
        BPF_MOV64_REG(1, 0),
        BPF_CALL_REL(1),
        BPF_EXIT_INSN(),
        BPF_MOV64_REG(0, 1),
        BPF_ALU64_IMM(BPF_ADD, 0, 100),
        BPF_EXIT_INSN(),
    ]
    patched = patch_insns(body, {index: [NOP, body[index]] for index in (2, 3, 7, 8, 9)})

    assert run_code(tuple(body)) == run_code(patched) == 106


def test_jump_that_becomes_too_long_is_refused() -> None:
    body = [BPF_JMP_A(2**15 - 1), *[NOP] * 2**15, BPF_EXIT_INSN()]

    with pytest.raises(Refused, match="insn 0 cannot be patched due to 16-bit range") as refused:
        patch_insns(body, {1: [NOP, NOP]})
    assert refused.value.errno == ENOMEM


@settings(deadline=None, max_examples=300)
@given(st.lists(arithmetic | memory | jumps, max_size=14))
def test_accepted_program_runs_without_an_error_of_its_own(body: list[Insn]) -> None:
    """Only offsets that the light walk tracks occur: what it accepts has to be all right."""
    numbers = [BPF_MOV64_IMM(reg, reg) for reg in range(5)]
    pointers = [BPF_MOV64_REG(6, BPF_REG_FP), BPF_MOV64_REG(7, BPF_REG_FP)]
    stack = [BPF_ST_MEM(BPF_DW, BPF_REG_FP, -8, 1), BPF_ST_MEM(BPF_DW, BPF_REG_FP, -24, 0)]
    ending = [*[BPF_MOV64_IMM(0, 0)] * 6, BPF_EXIT_INSN()]
    insns = (*numbers, *pointers, *stack, *body, *ending)
    if check_program(insns, ()) is not None:
        return
    env = Env(insns, FACTS, ())
    try:
        do_check(env)
    except Refused:
        return
    rewritten = fixup_bpf_calls(env).insns

    assert run_code(rewritten) == run_code(insns) == 0
