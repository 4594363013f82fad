"""Programs that v5.10 refuses for their structure, in its words, and programs that it accepts."""

import random
from errno import E2BIG, EACCES, EINVAL, EPERM

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from kernel_model.bpf import insn as bpf
from kernel_model.bpf.asm import assemble
from kernel_model.bpf.check import Rejection, Subprog, check_program, subprogs
from kernel_model.bpf.helper_ids import BPF_FUNC
from kernel_model.bpf.insn import OPCODES, Insn

HELPERS = frozenset({BPF_FUNC.map_lookup_elem, BPF_FUNC.tail_call})
EXIT = bpf.BPF_EXIT_INSN()


def check(text: str, *, bpf_capable: bool = True) -> Rejection | None:
    return check_program(assemble(text), HELPERS, bpf_capable=bpf_capable)


@pytest.mark.parametrize(
    "text",
    [
        "exit",
        "r0 = 0; not even r0 has to be set here\nexit",
        "r1 = 5 ll\nr1 = map[fd:3]\nr1 = map_value[fd:3]+8\nexit",
        "r0 = 0\nif r1 > 3 goto out\nr0 = 1\nout: exit",
        "goto last\nback: exit\nlast: goto back",  # the last instruction may jump
        "again: r1 += 1\nif r1 != 9 goto again\nexit",  # a loop that may end
        "again: goto again",  # and one that may not: bounds are a matter of values
        "goto b\na: if r1 == 0 goto out\nb: r0 = 0\ngoto a\nout: exit",  # closed by not jumping
        "call f\nexit\nf: call g\nexit\ng: exit",
        "call 1\ncall bpf_tail_call\nexit",
        "lock *(u32 *)(r1 +0) += r2\nlock *(u64 *)(r1 +0) += r10\nexit",
        "r6 = r1\nr0 = *(u8 *)skb[r7 + 0]\nr0 = *(u32 *)skb[4]\nexit",
        "r1 = be16 r1\nr1 = le32 r1\nr1 = be64 r1\nw1 = -w1\nr1 /= -1\nexit",
        "w1 <<= 31\nr1 s>>= 63\nr1 >>= 0\nexit",
        "*(u64 *)(r10 -8) = 1\nr1 = *(u64 *)(r10 -8)\n*(u8 *)(r1 +0) = r10\nexit",
    ],
)
def test_accepted(text: str) -> None:
    assert check(text) is None


@pytest.mark.parametrize(
    ("text", "insn", "message"),
    [
        ("r0 = 0", 0, "last insn is not an exit or jmp"),
        ("exit\nr1 = 5 ll", 2, "last insn is not an exit or jmp"),
        ("exit\nif r1 == 0 goto -1", 1, "last insn is not an exit or jmp"),
        ("call f\nf: exit", 0, "last insn is not an exit or jmp"),
        ("call f\nr0 = 0\nf: exit", 1, "last insn is not an exit or jmp"),
        ("goto +0", 0, "jump out of range from insn 0 to 1"),
        ("goto -2\nexit", 0, "jump out of range from insn 0 to -1"),
        ("r0 = 0\nexit\nexit\nif w1 == w2 goto +5\nexit", 3, "jump out of range from insn 3 to 9"),
        ("call f\ngoto f\nexit\nf: exit", 1, "jump out of range from insn 1 to 3"),
        ("call f\nexit\nf: goto -3", 2, "jump out of range from insn 2 to 0"),
        ("call pc+1\nexit", 0, "call to invalid destination"),
        ("call pc-2\nexit", 0, "call to invalid destination"),
        ("goto out\nr0 = 0\nout: exit", 1, "unreachable insn 1"),
        ("exit\nexit", 1, "unreachable insn 1"),
        ("call f\nexit\nf: call f\nexit", 2, "back-edge from insn 2 to 2"),
        ("call f\nexit\nf: call g\nexit\ng: call f\nexit", 4, "back-edge from insn 4 to 2"),
        # Falling through closes this loop, and that is refused with CAP_BPF as well.
        ("goto b\na: r0 = 0\nb: if r0 == 0 goto a\nexit", 1, "back-edge from insn 1 to 2"),
        ("goto b\na: call 1\nb: if r0 == 0 goto a\nexit", 1, "back-edge from insn 1 to 2"),
        ("r0 = 0\ncall pc-2\nexit", 1, "back-edge from insn 1 to 0"),
        ("call 0\nexit", 0, "unknown func bpf_unspec#0"),
        ("call bpf_ktime_get_ns\nexit", 0, "unknown func bpf_ktime_get_ns#5"),
        ("call 999\nexit", 0, "invalid func unknown#999"),
        ("call 156\nexit", 0, "invalid func unknown#156"),
        ("call -1\nexit", 0, "invalid func unknown#-1"),
        ("r1 /= 0\nexit", 0, "div by zero"),
        ("r1 = 5 ll\nr2 = 5 ll\nw1 %= 0\nexit", 4, "div by zero"),
        ("r1 <<= 64\nexit", 0, "invalid shift 64"),
        ("w1 >>= 32\nexit", 0, "invalid shift 32"),
        ("r1 s>>= -1\nexit", 0, "invalid shift -1"),
        ("if r1 == 0 goto +1\nr1 = 5 ll\nexit", 2, "invalid BPF_LD_IMM insn"),
        ("r1 = 5 ll\nif r1 == 0 goto -2\nexit", 1, "invalid BPF_LD_IMM insn"),
    ],
)
def test_refused(text: str, insn: int, message: str) -> None:
    assert check(text) == Rejection(EINVAL, insn, message)


@pytest.mark.parametrize(
    "text",
    [
        "r10 = r1",
        "r10 += 1",
        "w10 = 0",
        "r10 = -r10",
        "r10 = be16 r10",
        "r10 = 5 ll",
        "r10 = map[fd:3]",
        "r10 = *(u64 *)(r1 +0)",
    ],
)
def test_the_frame_pointer_is_read_only(text: str) -> None:
    expected = Rejection(EACCES, 1, "frame pointer is read only")

    assert check(f"r0 = 0\n{text}\nexit") == expected


@pytest.mark.parametrize(
    ("name", "insn"),
    [
        ("BPF_LDX", Insn(0x61, imm=1)),
        ("BPF_LDX", Insn(0x01)),  # no other mode, BPF_PROBE_MEM neither
        ("BPF_LDX", Insn(0x39)),
        ("BPF_STX", Insn(0x63, imm=1)),
        ("BPF_STX", Insn(0xDB, imm=1)),
        ("BPF_STX", Insn(0x23)),
        ("BPF_ST", Insn(0x62, src=1)),
        ("BPF_NEG", Insn(0x87, src=1)),
        ("BPF_NEG", Insn(0x84, off=1)),
        ("BPF_NEG", Insn(0x84, imm=1)),
        ("BPF_END", Insn(0xDC, imm=8)),
        ("BPF_END", Insn(0xD4, src=1, imm=16)),
        ("BPF_END", Insn(0xD4, off=1, imm=16)),
        ("BPF_MOV", Insn(0xBF, imm=1)),
        ("BPF_MOV", Insn(0xBC, off=1)),
        ("BPF_MOV", Insn(0xB7, src=1)),
        ("BPF_MOV", Insn(0xB4, off=8)),
        ("BPF_ALU", Insn(0x0F, imm=1)),
        ("BPF_ALU", Insn(0x2C, off=1)),
        ("BPF_ALU", Insn(0x07, src=1)),
        ("BPF_ALU", Insn(0x54, off=1)),
        ("BPF_JMP/JMP32", Insn(0x1D, imm=1)),
        ("BPF_JMP/JMP32", Insn(0x16, src=1)),
        ("BPF_JA", Insn(0x05, imm=1)),
        ("BPF_JA", Insn(0x05, src=1)),
        ("BPF_JA", Insn(0x05, dst=1)),
        ("BPF_EXIT", Insn(0x95, imm=1)),
        ("BPF_CALL", Insn(0x85, imm=1, off=1)),
        ("BPF_CALL", Insn(0x85, imm=1, src=2)),
        ("BPF_CALL", Insn(0x85, imm=1, dst=1)),
        ("BPF_LD_[ABS|IND]", Insn(0x20, dst=1)),
        ("BPF_LD_[ABS|IND]", Insn(0x20, src=1)),
        ("BPF_LD_[ABS|IND]", Insn(0x50, off=1)),
    ],
)
def test_reserved_fields_have_to_be_zero(name: str, insn: Insn) -> None:
    program = [bpf.BPF_JMP_IMM(bpf.BPF_JEQ, 0, 0, 1), insn, EXIT]  # exit is no dead end

    assert check_program(program, HELPERS) == Rejection(EINVAL, 1, f"{name} uses reserved fields")


def test_exit_does_not_look_at_its_offset() -> None:
    assert check_program([Insn(0x95, off=7)], HELPERS) is None


@pytest.mark.parametrize("code", sorted(set(range(256)) - OPCODES))
def test_an_opcode_has_to_exist(code: int) -> None:
    rejection = check_program([Insn(code), EXIT], HELPERS)

    assert rejection is not None
    assert (rejection.errno, rejection.insn) == (EINVAL, 0)
    kinds = {1: "BPF_LDX uses reserved fields", 3: "BPF_STX uses reserved fields"}
    unknown = f"unknown opcode {code:02x}"
    if code in (0xCB, 0xD3):  # atomic addition to a byte or a half-word
        assert rejection.message == unknown
    else:
        assert rejection.message == kinds.get(code & 7, unknown)


def test_the_internal_tail_call_cannot_be_loaded() -> None:
    program = [Insn(bpf.BPF_JMP | bpf.BPF_TAIL_CALL), EXIT]

    assert check_program(program, HELPERS) == Rejection(EINVAL, 0, "unknown opcode f5")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (Insn(0x18), Insn(0, dst=1), "invalid bpf_ld_imm64 insn"),
        (Insn(0x18), Insn(0, src=1), "invalid bpf_ld_imm64 insn"),
        (Insn(0x18), Insn(0, off=1), "invalid bpf_ld_imm64 insn"),
        (Insn(0x18), EXIT, "invalid bpf_ld_imm64 insn"),
        (Insn(0x18, src=4), Insn(0), "unrecognized bpf_ld_imm64 insn"),
        (Insn(0x18, src=bpf.BPF_PSEUDO_MAP_FD), Insn(0, imm=1), "unrecognized bpf_ld_imm64 insn"),
        (
            Insn(0x18, src=bpf.BPF_PSEUDO_BTF_ID),
            Insn(0, imm=1),
            "reserved field (insn[1].imm) is used in pseudo_btf_id ldimm64 insn.",
        ),
        (Insn(0x18, off=1), Insn(0), "BPF_LD_IMM64 uses reserved fields"),
    ],
)
def test_both_halves_of_a_constant_are_checked(first: Insn, second: Insn, message: str) -> None:
    program = [first, second, EXIT]

    assert check_program(program, HELPERS) == Rejection(EINVAL, 0, message)


def test_half_a_constant_at_the_end() -> None:
    program = [bpf.BPF_JMP_A(1), Insn(0x18), bpf.BPF_JMP_A(-2)]

    assert check_program(program, HELPERS) == Rejection(EINVAL, 1, "invalid bpf_ld_imm64 insn")


@pytest.mark.parametrize(
    "insn",
    [
        bpf.BPF_MOV64_REG(0, 11),
        bpf.BPF_MOV64_IMM(11, 0),
        bpf.BPF_ALU64_IMM(bpf.BPF_DIV, 11, 0),  # said before the division by zero
        bpf.BPF_LDX_MEM(bpf.BPF_W, 0, 11, 0),
        bpf.BPF_STX_MEM(bpf.BPF_W, 11, 0, 0),
        bpf.BPF_STX_MEM(bpf.BPF_W, 0, 11, 0),
        bpf.BPF_STX_XADD(bpf.BPF_W, 11, 0, 0),
        bpf.BPF_ST_MEM(bpf.BPF_W, 11, 0, 0),
        bpf.BPF_JMP_REG(bpf.BPF_JEQ, 0, 11, 0),
        bpf.BPF_JMP32_IMM(bpf.BPF_JEQ, 11, 0, 0),
        bpf.BPF_LD_IND(bpf.BPF_B, 11, 0),
        bpf.BPF_ENDIAN(bpf.BPF_TO_BE, 11, 16),
    ],
)
def test_there_is_no_register_eleven(insn: Insn) -> None:
    assert check_program([insn, EXIT], HELPERS) == Rejection(EINVAL, 0, "R11 is invalid")


def test_an_empty_program_has_no_entry_function() -> None:
    assert check_program([], HELPERS) == Rejection(EINVAL, 0, "call to invalid destination")


def test_without_the_capability_there_are_no_functions() -> None:
    message = "function calls to other bpf functions are allowed for CAP_BPF and CAP_SYS_ADMIN"

    assert check("call f\nexit\nf: exit", bpf_capable=False) == Rejection(EPERM, 0, message)


def test_without_the_capability_there_are_no_loops() -> None:
    loop = "again: r1 += 1\nif r1 != 9 goto again\nexit"

    expected = Rejection(EINVAL, 1, "back-edge from insn 1 to 0")
    assert check(loop, bpf_capable=False) == expected


def test_the_number_of_functions_is_limited() -> None:
    def program(functions: int) -> list[Insn]:
        calls = [bpf.BPF_CALL_REL(functions)] * functions  # each one further on
        return [*calls, EXIT, *[EXIT] * functions]

    assert check_program(program(255), HELPERS) is None  # and the entry function
    assert check_program(program(256), HELPERS) == Rejection(E2BIG, 255, "too many subprograms")


def test_the_passes_run_in_the_order_of_the_kernel() -> None:
    fields = Insn(0x07, src=1)
    unreachable = [bpf.BPF_JMP_A(1), fields, EXIT]
    unknown = [*unreachable[:-1], Insn(0x8F), EXIT]
    no_end = [*unknown, fields]

    messages = [
        rejection.message
        for program in (unreachable, unknown, no_end)
        if (rejection := check_program(program, HELPERS))
    ]
    assert messages == [
        "unreachable insn 1",
        "unknown opcode 8f",
        "last insn is not an exit or jmp",
    ]


def test_subprogs() -> None:
    program = assemble("""
        r1 = 5 ll
        call f
        call g
        exit
    g:  r0 = *(u8 *)skb[0]
        call f
        exit
    f:  call bpf_tail_call
        exit
    """)

    assert check_program(program, HELPERS) is None
    assert subprogs(program) == (
        Subprog(0, 5, has_tail_call=False, has_ld_abs=False),
        Subprog(5, 8, has_tail_call=False, has_ld_abs=True),
        Subprog(8, 10, has_tail_call=True, has_ld_abs=False),
    )


def test_a_call_of_function_twelve_is_no_tail_call() -> None:
    program = [bpf.BPF_CALL_REL(12), *[bpf.BPF_MOV64_IMM(0, 0)] * 11, EXIT, EXIT]

    assert [subprog.has_tail_call for subprog in subprogs(program)] == [False, False]


# Whatever is accepted can run: no path leaves the program or enters half a constant.

TARGETS = st.integers(0, 9)
LINES = st.one_of(
    st.just("r0 = 0"),
    st.just("r1 = 5 ll"),
    st.just("exit"),
    st.builds("if r1 == 0 goto l{}".format, TARGETS),
    st.builds("if w1 s> -5 goto {:+}".format, st.integers(-4, 4)),
    st.builds("goto l{}".format, TARGETS),
    st.builds("call l{}".format, TARGETS),
)


@st.composite
def programs(draw: st.DrawFn) -> tuple[Insn, ...]:
    """A few lines with jumps between them; many are refused, enough are not."""
    lines = draw(st.lists(LINES, max_size=9))
    labelled = [f"l{index}: {line}" for index, line in enumerate(lines)]
    ends = [f"l{index}:" for index in range(len(lines), 10)]
    return assemble("\n".join([*labelled, *ends, "exit"]))


def run(program: tuple[Insn, ...], rng: random.Random, steps: int = 60) -> None:
    """Takes a random path, and asserts at each step that there is an instruction to run."""
    here, returns = 0, list[int]()
    for _ in range(steps):
        insn = program[here]
        assert here >= 0
        assert insn.code in OPCODES
        if insn.code == bpf.BPF_JMP | bpf.BPF_EXIT:
            if not returns:
                return
            here = returns.pop()
        elif insn.code == bpf.BPF_JMP | bpf.BPF_CALL and insn.src == bpf.BPF_PSEUDO_CALL:
            returns.append(here + 1)
            here += insn.imm + 1
        elif bpf.BPF_CLASS(insn.code) in (bpf.BPF_JMP, bpf.BPF_JMP32):
            jumps = insn.code == bpf.BPF_JMP | bpf.BPF_JA or rng.random() < 0.5
            here += insn.off + 1 if jumps else 1
        else:
            here += 2 if bpf.is_ld_imm64(insn) else 1


@settings(max_examples=300)
@given(programs(), st.randoms(use_true_random=False))
def test_what_is_accepted_can_run(program: tuple[Insn, ...], rng: random.Random) -> None:
    rejection = check_program(program, HELPERS)

    event("accepted" if rejection is None else rejection.message.rstrip("-0123456789"))
    if rejection is None:
        run(program, rng)


@given(st.binary(max_size=80).filter(lambda data: len(data) % 8 == 0), st.booleans())
def test_any_bytes_get_an_answer(data: bytes, bpf_capable: bool) -> None:
    program = bpf.decode(data)

    rejection = check_program(program, HELPERS, bpf_capable=bpf_capable)

    if rejection is not None:
        assert rejection.errno in (EINVAL, EACCES, EPERM, E2BIG)
        assert 0 <= rejection.insn < max(len(program), 1)
