"""What the load-time checks make of bpf_tail_call: direct, indirect, or refused."""

import pytest

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import (
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_PROG_ARRAY,
)
from kernel_model.bpf.fixup import PokeFacts
from kernel_model.bpf.helper_ids import BPF_FUNC
from kernel_model.bpf.insn import BPF_JMP, BPF_TAIL_CALL
from kernel_model.bpf.prog_attr import (
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SCHED_CLS,
    BPF_PROG_TYPE_TRACING,
)
from kernel_model.bpf.prog_types import PROG_TYPES, check_map_prog_compatibility, known_helpers
from kernel_model.bpf.verifier import Verdict, verify
from kernel_model.bpf.verifier_state import FunctionFacts, MapFacts, ProgFacts, Refused
from kernel_model.linux.errno import EACCES, EINVAL, ENOSPC

FACTS = ProgFacts(BPF_PROG_TYPE_RAW_TRACEPOINT, 0, "", sleepable=False)


def facts_of(map_index: int, map_type: int, max_entries: int = 3) -> MapFacts:
    return MapFacts(
        map_index=map_index,
        map_type=map_type,
        key_size=4,
        value_size=4,
        map_flags=0,
        spin_lock_off=None,
        lookup="lookup",
        update="",
        delete="delete",
        inlined=0,
        inner=None,
        max_entries=max_entries,
    )


PROGS, OTHERS = (facts_of(index, BPF_MAP_TYPE_PROG_ARRAY) for index in (0, 1))
ARRAY = facts_of(2, BPF_MAP_TYPE_ARRAY)
HASH = facts_of(3, BPF_MAP_TYPE_HASH)
OUTER = facts_of(4, BPF_MAP_TYPE_ARRAY_OF_MAPS)._replace(inner=ARRAY)
MAPS = (PROGS, OTHERS, ARRAY, HASH, OUTER)
NAMES = {"progs": 0, "others": 1, "array": 2, "hash": 3, "outer": 4}

TAIL_CALL = "r2 = map[progs]\nr3 = 1\ncall bpf_tail_call\n"
RETURN = "r0 = 0\nexit\n"
# A value that nobody knows, in r6; the context is in r7.
UNKNOWN = "r7 = r1\nr6 = *(u64 *)(r1 +0)\n"


def check(code: str, prog: ProgFacts = FACTS) -> Verdict:
    return verify(assemble(code, NAMES), prog, MAPS)


def accept(code: str, prog: ProgFacts = FACTS) -> Verdict:
    verdict = check(code, prog)
    assert verdict.errno == 0, verdict.log
    return verdict


def immediates(verdict: Verdict) -> dict[int, int]:
    """The tail calls of the rewritten program, by index."""
    return {
        index: insn.imm
        for index, insn in enumerate(verdict.insns)
        if insn.code == BPF_JMP | BPF_TAIL_CALL
    }


def stack(size: int) -> str:
    return f"*(u64 *)(r10 -{size}) = 0\n"


# -- direct and indirect -------------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, 1, 2])
def test_one_key_of_one_map_is_called_directly(key: int) -> None:
    verdict = accept(f"r2 = map[progs]\nr3 = {key}\ncall bpf_tail_call\n{RETURN}")

    assert verdict.pokes == (PokeFacts(3, 0, key),)
    assert immediates(verdict) == {3: 1}


@pytest.mark.parametrize("key", ["r3 = 3", "r3 = -1", "r3 = 0x100000001 ll", "r3 = r6"])
def test_key_that_is_unknown_or_beyond_the_end_is_looked_up(key: str) -> None:
    verdict = accept(f"{UNKNOWN}r1 = r7\nr2 = map[progs]\n{key}\ncall bpf_tail_call\n{RETURN}")

    assert verdict.pokes == ()
    assert list(immediates(verdict).values()) == [0]


@pytest.mark.parametrize(
    ("here", "there", "direct"),
    [
        ("r2 = map[progs]\nr3 = 1", "r2 = map[progs]\nr3 = 1", True),
        ("r2 = map[progs]\nr3 = 1", "r2 = map[progs]\nr3 = 2", False),
        ("r2 = map[progs]\nr3 = 1", "r2 = map[others]\nr3 = 1", False),
        ("r2 = map[progs]\nr3 = 1", "r2 = map[progs]\nr3 = r6", False),
        ("r2 = map[progs]\nr3 = r6", "r2 = map[progs]\nr3 = 1", False),
        ("r2 = map[progs]\nr3 = 9", "r2 = map[progs]\nr3 = 1", False),
    ],
)
def test_two_paths_to_one_tail_call(here: str, there: str, *, direct: bool) -> None:
    verdict = accept(f"""
        {UNKNOWN}
        if r6 == 0 goto there
        {here}
        goto both
    there:
        {there}
    both:
        r1 = r7
        call bpf_tail_call
        {RETURN}
    """)

    assert len(verdict.pokes) == direct
    assert list(immediates(verdict).values()) == [int(direct)]


def test_what_was_compared_with_a_constant_is_that_constant() -> None:
    verdict = accept(f"""
        {UNKNOWN}
        if r6 == 2 goto equal
        {RETURN}
    equal:
        r1 = r7
        r2 = map[progs]
        r3 = r6
        call bpf_tail_call
        {RETURN}
    """)

    assert [poke.key for poke in verdict.pokes] == [2]


def test_one_tail_call_of_a_function_that_is_called_with_two_keys_is_indirect() -> None:
    verdict = accept(f"""
        r6 = r1
        r2 = 1
        call f
        r1 = r6
        r2 = 2
        call f
        exit
    f:  r3 = r2
        r2 = map[progs]
        call bpf_tail_call
        {RETURN}
    """)

    assert verdict.pokes == ()


def test_descriptors_count_direct_tail_calls_in_the_order_of_instructions() -> None:
    verdict = accept(f"""
        r6 = r1
        r2 = map[others]
        r3 = 2
        call bpf_tail_call
        r1 = r6
        r2 = map[progs]
        r3 = 7
        call bpf_tail_call
        r1 = r6
        r2 = map[progs]
        r3 = 0
        call bpf_tail_call
        {RETURN}
    """)

    assert verdict.pokes == (PokeFacts(4, 1, 2), PokeFacts(14, 0, 0))
    assert immediates(verdict) == {4: 1, 9: 0, 14: 2}


def test_descriptors_move_with_what_is_rewritten_in_front() -> None:
    division = "r0 = 6\nr4 = 3\nr0 /= r4\n"  # four instructions in place of the last one
    verdict = accept(f"{division}{TAIL_CALL}r5 = 1\nr5 /= r5\n{RETURN}")

    assert verdict.pokes == (PokeFacts(2 + 4 + 3, 0, 1),)
    assert immediates(verdict) == {9: 1}


def test_a_jump_to_a_tail_call_still_gets_there() -> None:
    verdict = accept(f"""
        {UNKNOWN}
        r1 = r7
        r2 = map[progs]
        r3 = 1
        if r6 == 0 goto jump
        r4 = 3
        r4 /= r4
    jump:
        call bpf_tail_call
        {RETURN}
    """)
    ((at, _),) = immediates(verdict).items()
    jumps = [index for index, insn in enumerate(verdict.insns) if insn.dst == 6 and insn.off]

    assert [index + 1 + verdict.insns[index].off for index in jumps] == [at]


def test_there_may_be_1024_direct_tail_calls() -> None:
    one = f"r1 = r6\n{TAIL_CALL}"
    most = accept(f"r6 = r1\n{one * 1024}{RETURN}")

    assert len(most.pokes) == 1024
    assert check(f"r6 = r1\n{one * 1025}{RETURN}").errno == ENOSPC


# -- functions -----------------------------------------------------------------------------------


def test_facts_about_the_functions_of_a_rewritten_program() -> None:
    verdict = accept(f"""
        {stack(24)}
        r6 = r1
        r0 = 8
        r9 = 2
        r0 /= r9
        call plain
        r1 = r6
        call tail
        exit
    plain:
        r0 = 1
        exit
    tail:
        {stack(8)}
        r8 = r1
        {TAIL_CALL}
        r0 = 2
        exit
    """)

    assert verdict.functions == (
        FunctionFacts(0, 12, 24, (6, 9), has_tail_call=False, tail_call_reachable=True),
        FunctionFacts(12, 14, 0, (), has_tail_call=False, tail_call_reachable=False),
        FunctionFacts(14, 22, 8, (8,), has_tail_call=True, tail_call_reachable=True),
    )
    assert verdict.pokes == (PokeFacts(19, 0, 1),)


def test_every_caller_up_to_the_entry_reaches_a_tail_call() -> None:
    verdict = accept(f"call a\nexit\na: call b\nexit\nb: call c\nexit\nc: {TAIL_CALL}{RETURN}")

    assert [function.tail_call_reachable for function in verdict.functions] == [True] * 4


def test_a_program_of_one_function_without_a_tail_call() -> None:
    assert accept("r0 = 0\nexit").functions == (FunctionFacts(0, 2, 0, (), False, False),)


@pytest.mark.parametrize("prog_type", sorted(PROG_TYPES))
def test_programs_of_all_types_may_tail_call(prog_type: int) -> None:
    assert {BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_LSM} < PROG_TYPES
    assert BPF_FUNC.tail_call in known_helpers(FACTS._replace(prog_type=prog_type))


# -- refusals ------------------------------------------------------------------------------------

KEY = "*(u64 *)(r10 -8) = 0\nr2 = r10\nr2 += -8\nr3 = r2\nr4 = 0\n"

REFUSED = [
    # the map
    (f"r2 = map[array]\nr3 = 0\ncall bpf_tail_call\n{RETURN}", EINVAL,
     "kernel subsystem misconfigured verifier"),
    (f"r2 = map[hash]\nr3 = 0\ncall bpf_tail_call\n{RETURN}", EINVAL,
     "kernel subsystem misconfigured verifier"),
    (f"r2 = map[outer]\nr3 = 0\ncall bpf_tail_call\n{RETURN}", EINVAL,
     "kernel subsystem misconfigured verifier"),
    (f"{KEY}r1 = map[progs]\ncall bpf_map_lookup_elem\n{RETURN}", EINVAL,
     "cannot pass map_type 3 into func bpf_map_lookup_elem#1"),
    (f"{KEY}r1 = map[progs]\ncall bpf_map_update_elem\n{RETURN}", EINVAL,
     "cannot pass map_type 3 into func bpf_map_update_elem#2"),
    (f"{KEY}r1 = map[progs]\ncall bpf_map_delete_elem\n{RETURN}", EINVAL,
     "cannot pass map_type 3 into func bpf_map_delete_elem#3"),
    # the arguments
    (f"r1 = r10\n{TAIL_CALL}{RETURN}", EACCES, "R1 type=fp expected=ctx"),
    (f"r1 = 0\n{TAIL_CALL}{RETURN}", EACCES, "R1 type=inv expected=ctx"),
    (f"r2 = 0\nr3 = 0\ncall bpf_tail_call\n{RETURN}", EACCES, "R2 type=inv expected=map_ptr"),
    (f"r2 = map[progs]\ncall bpf_tail_call\n{RETURN}", EACCES, "R3 !read_ok"),
    # what is left after a tail call that fails
    (f"r0 = 0\n{TAIL_CALL}exit", EACCES, "R0 !read_ok"),
    (f"{TAIL_CALL}r0 = r1\nexit", EACCES, "R1 !read_ok"),
    (f"r5 = 0\n{TAIL_CALL}r0 = r5\nexit", EACCES, "R5 !read_ok"),
    # the stack
    (f"{stack(256)}call f\nexit\nf: {TAIL_CALL}{RETURN}", EACCES,
     "call stack of previous frames is 256 bytes. Too large"),
    (f"{stack(128)}call f\nexit\nf: {stack(128)}call g\nexit\ng: {TAIL_CALL}{RETURN}", EACCES,
     "call stack of previous frames is 256 bytes. Too large"),
    (f"{stack(224)}call f\nexit\nf: {stack(320)}{TAIL_CALL}{RETURN}", EACCES,
     "combined stack size of 2 calls is 544. Too large"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "errno", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(code: str, errno: int, message: str) -> None:
    verdict = check(code)

    assert message in verdict.log
    assert verdict.errno == errno


def test_registers_that_a_callee_keeps_survive_a_tail_call_that_fails() -> None:
    accept(f"r6 = 0\n{TAIL_CALL}r0 = r6\nexit")


@pytest.mark.parametrize(
    "code",
    [
        f"{stack(512)}{TAIL_CALL}{RETURN}",  # the entry has no callers
        f"{stack(224)}call f\nexit\nf: {stack(288)}{TAIL_CALL}{RETURN}",
        f"{stack(256)}call f\nexit\nf: {RETURN}",  # no tail call
        f"{stack(256)}r6 = r1\ncall f\nr1 = r6\n{TAIL_CALL}{RETURN}f: {RETURN}",
    ],
)
def test_accepted_with_this_much_stack(code: str) -> None:
    accept(code)


SUBPROG = f"call f\nexit\nf: {TAIL_CALL}{RETURN}"
ENTRY = f"r6 = r1\ncall f\nr1 = r6\n{TAIL_CALL}{RETURN}f: {RETURN}"
ALONE = f"{TAIL_CALL}{RETURN}"
NONE = f"call f\nexit\nf: {RETURN}"


@pytest.mark.parametrize(
    ("code", "refused"), [(SUBPROG, True), (ENTRY, True), (ALONE, False), (NONE, False)]
)
def test_functions_and_tail_calls_did_not_mix_once(code: str, *, refused: bool) -> None:
    verdict = check(code, FACTS._replace(tail_call_subprogs=False))
    message = "tail_calls are not allowed in programs with bpf-to-bpf calls"

    assert verdict.errno == (EINVAL if refused else 0)
    assert (message in verdict.log) == refused


@pytest.mark.parametrize("map_in_map", [False, True])
def test_sleepable_programs_have_no_prog_arrays(*, map_in_map: bool) -> None:
    attached = ProgFacts(BPF_PROG_TYPE_TRACING, BPF_MODIFY_RETURN, "__x64_sys_nanosleep", True)

    with pytest.raises(Refused, match="Sleepable programs can only use array and hash") as refused:
        check_map_prog_compatibility(attached, PROGS, map_in_map=map_in_map)
    assert refused.value.errno == EINVAL
