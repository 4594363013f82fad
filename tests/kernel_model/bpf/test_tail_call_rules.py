"""Rules of v5.10 about tail calls that are easily got wrong: which fault comes first, and keys."""

from __future__ import annotations

from errno import EACCES, EINVAL
from typing import Any

import pytest

from kernel_model.boot import boot
from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.capability import drop_capabilities
from kernel_model.bpf.disasm import print_bpf_insn
from kernel_model.bpf.insn import BPF_JMP, BPF_TAIL_CALL
from kernel_model.bpf.prog import BpfProg, bpf_prog_load
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT, ProgLoadAttr
from kernel_model.bpf.verifier import verify
from kernel_model.checks import linux_detectors
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf_create_map, bpf_map_update_elem, u32
from sim.detectors import standard_detectors
from sim.execution import Execution
from sim.hosts import direct
from sim.macros import join
from sim.memory import Memory
from sim.strategies.random_walk import RandomWalk
from tests.kernel_model.bpf.running import explore, load, run, traced
from tests.kernel_model.bpf.test_poke import prog_of
from tests.kernel_model.bpf.test_tail_call_check import FACTS, MAPS, NAMES, PROGS

TAIL = "r2 = map[progs]\nr3 = 0\ncall bpf_tail_call\n"
RETURN = "r0 = 0\nexit\n"
SUBPROG = f"call f\nexit\nf: {TAIL}{RETURN}"
WITHOUT_BTF = "tail_call is not allowed in subprogs without BTF"
MIXED = "tail_calls are not allowed in programs with bpf-to-bpf calls"


def refusal(code: str, version: str = "5.10", **attributes: Any) -> tuple[int, str]:
    """0 or the errno of a load, and the last line of the log."""

    async def main(kernel: Kernel) -> tuple[int, str]:
        maps = {
            "progs": await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 3),
            "array": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 3),
        }
        log = bytearray()
        attr = ProgLoadAttr(
            prog_type=BPF_PROG_TYPE_RAW_TRACEPOINT,
            insns=assemble(code, maps),
            log_buf=log,
            **attributes,
        )
        async with syscall(kernel):
            fd = await bpf_prog_load(kernel, attr)
        return max(-fd, 0), (log.decode().splitlines() or [""])[-1]

    found: tuple[int, str] = run(main, version)
    return found


# -- functions without BTF -----------------------------------------------------------------------


@pytest.mark.parametrize("func_info", [False, True])
@pytest.mark.parametrize(
    ("code", "needs"),
    [
        (SUBPROG, True),
        (f"r6 = r1\ncall f\nr1 = r6\n{TAIL}{RETURN}f: {RETURN}", False),
        (f"{TAIL}{RETURN}", False),
        (f"call f\nexit\nf: {RETURN}", False),
    ],
)
def test_functions_with_a_tail_call_need_btf(code: str, *, needs: bool, func_info: bool) -> None:
    errno, said = refusal(code, func_info=func_info)

    assert errno == (EINVAL if needs and not func_info else 0)
    assert (said == WITHOUT_BTF) == bool(errno)


@pytest.mark.parametrize(
    ("fault", "errno", "message"),
    [
        # said by what comes later: the graph, maps, the walk
        ("goto over\nr0 = 7\nover: r0 = 1", EINVAL, "unreachable insn 1"),
        ("again: goto again", EINVAL, "unreachable insn 1"),
        ("r6 = map[fd:99]", 9, "fd 99 is not pointing to valid bpf_map"),
        ("r0 = r5", EACCES, "R5 !read_ok"),
        ("*(u64 *)(r10 -1024) = 0", EACCES, "invalid stack off=-1024 size=8"),
    ],
)
def test_that_comes_before_other_faults(fault: str, errno: int, message: str) -> None:
    code = f"{fault}\n{SUBPROG}"

    assert refusal(code, func_info=False) == (EINVAL, WITHOUT_BTF)
    assert refusal(code) == (errno, message)


def test_that_comes_after_where_jumps_go() -> None:
    message = "jump out of range from insn 0 to -1"

    assert refusal(f"goto -2\n{SUBPROG}", func_info=False) == (EINVAL, message)


def test_v5_9_says_that_functions_and_tail_calls_do_not_mix_where_it_comes_to_the_call() -> None:
    assert refusal(SUBPROG, "5.9") == (EINVAL, MIXED)
    assert refusal(SUBPROG, "5.9", func_info=False) == (EINVAL, MIXED)
    assert refusal(f"r0 = r5\n{SUBPROG}", "5.9") == (EACCES, "R5 !read_ok")
    assert refusal(f"call f\nexit\nf: r0 = 1\nif r0 == 1 goto out\n{TAIL}out: {RETURN}", "5.9") == (
        0,
        refusal(f"call f\nexit\nf: r0 = 1\nif r0 == 1 goto out\n{TAIL}out: {RETURN}", "5.9")[1],
    )


# -- arguments -----------------------------------------------------------------------------------

MOVED = "dereference of modified ctx ptr R1 off={} disallowed"


@pytest.mark.parametrize(
    ("move", "errno", "message"),
    [
        ("r1 += 8", EACCES, MOVED.format(8)),
        ("r1 += -8", EACCES, MOVED.format(-8)),
        ("r1 -= 8", EACCES, MOVED.format(-8)),
        ("r5 = 16\nr1 += r5\nr1 += 8", EACCES, MOVED.format(24)),
        ("r1 += 536870912", EINVAL, "math between ctx pointer and 536870912 is not allowed"),
        ("r5 = *(u64 *)(r1 +0)\nr1 += r5", EINVAL,
         "math between ctx pointer and register with unbounded min value is not allowed"),
        ("r1 += 536870911\nr1 += 1\nr1 += 1", EINVAL,
         "ctx pointer offset 536870912 is not allowed"),
    ],
)  # fmt: skip
def test_the_context_is_passed_on_as_it_came(move: str, errno: int, message: str) -> None:
    assert refusal(f"{move}\n{TAIL}{RETURN}") == (errno, message)


@pytest.mark.parametrize("move", ["r1 += 0", "r1 += 8\nr1 += -8", "r1 += 8\nr1 -= 8"])
def test_the_context_may_have_been_away(move: str) -> None:
    assert refusal(f"{move}\n{TAIL}{RETURN}")[0] == 0


def test_a_function_may_get_a_moved_context_but_not_pass_it_on() -> None:
    code = f"r1 += 8\ncall f\nexit\nf: {{}}{RETURN}"

    assert refusal(code.format(""))[0] == 0
    assert refusal(code.format(TAIL)) == (EACCES, MOVED.format(8))


@pytest.mark.parametrize(
    ("code", "errno", "message"),
    [
        ("r2 = map[array]\ncall bpf_tail_call", EACCES, "R3 !read_ok"),
        ("r2 = map[array]\nr3 = 0\ncall bpf_tail_call", EINVAL,
         "kernel subsystem misconfigured verifier"),
        ("r1 = map[progs]\nr2 = 0\ncall bpf_map_lookup_elem", EACCES,
         "R2 type=inv expected=fp, pkt, pkt_meta, map_value"),
        ("*(u32 *)(r10 -4) = 0\nr2 = r10\nr2 += -4\nr1 = map[progs]\ncall bpf_map_lookup_elem",
         EINVAL, "cannot pass map_type 3 into func bpf_map_lookup_elem#1"),
    ],
)  # fmt: skip
def test_arguments_are_looked_at_before_what_the_map_is_for(
    code: str, errno: int, message: str
) -> None:
    assert refusal(f"{code}\n{RETURN}") == (errno, message)


# -- maps of creators that are not trusted -------------------------------------------------------

UNTRUSTED = tuple(facts._replace(unpriv=facts.map_index == 1) for facts in MAPS)
BOTH = """
    r7 = r1
    r6 = *(u64 *)(r1 +0)
    r2 = map[{}]
    if r6 == 0 goto there
    r2 = map[{}]
there:
    r1 = r7
    r3 = 1
    call bpf_tail_call
    r0 = 0
    exit
"""


def rewritten(code: str) -> tuple[int, list[str], int]:
    """The errno, the rewritten instructions, and the number of direct tail calls."""
    verdict = verify(assemble(code, NAMES), FACTS, UNTRUSTED)
    return verdict.errno, [print_bpf_insn(insn) for insn in verdict.insns], len(verdict.pokes)


def test_the_index_of_an_untrusted_array_is_masked() -> None:
    errno, insns, pokes = rewritten(f"r2 = map[others]\nr3 = 1\ncall bpf_tail_call\n{RETURN}")

    assert (errno, pokes) == (0, 0)
    assert insns[3:5] == ["(35) if r3 >= 0x3 goto pc+2", "(54) w3 &= 3"]
    assert len(insns) == 3 + 3 + 2


@pytest.mark.parametrize(
    ("here", "there", "errno"),
    [("progs", "progs", 0), ("others", "others", 0), ("progs", "others", EINVAL),
     ("others", "progs", EINVAL)],
)  # fmt: skip
def test_an_untrusted_array_may_not_be_one_of_two(here: str, there: str, errno: int) -> None:
    verdict = verify(assemble(BOTH.format(here, there), NAMES), FACTS, UNTRUSTED)

    assert verdict.errno == errno
    assert ("tail_call abusing map_ptr" in verdict.log) == bool(errno)
    assert len(verdict.pokes) == (here == there == "progs")


def test_two_trusted_arrays_are_called_indirectly() -> None:
    verdict = verify(assemble(BOTH.format("progs", "others"), NAMES), FACTS, MAPS)

    assert (verdict.errno, verdict.pokes) == (0, ())


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("index", [0, 1, 3, 2**32])
def test_who_made_the_array_decides(index: int, *, trusted: bool) -> None:
    """And what is called stays the same, but for an index that is too large for 32 bits."""

    async def create(kernel: Kernel, made: list[int]) -> None:
        if not trusted:
            drop_capabilities(kernel)
        made.append(await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 3))

    async def main(kernel: Kernel) -> tuple[int, int, int]:
        made: list[int] = []
        await join(await task(kernel, create, kernel, made, name="creator"))
        target = await load(kernel, "r0 = 42\nexit")
        assert await bpf_map_update_elem(kernel, made[0], u32(0), u32(target)) == 0
        code = f"r2 = map[progs]\nr3 = {index} ll\ncall bpf_tail_call\nr0 = 7\nexit"
        fd = await load(kernel, code, maps={"progs": made[0]})
        prog: BpfProg = prog_of(kernel, fd)
        calls = [i.imm for i in prog.text.insns if i.code == BPF_JMP | BPF_TAIL_CALL]
        return await traced(kernel, fd, 0), calls[0], prog.aux.size_poke_tab.value

    result, imm, pokes = run(main)
    assert (imm, pokes) == ((1, 1) if trusted and index <= 3 else (0, 0))
    assert result == (42 if index == 0 or (trusted and index == 2**32) else 7)


# -- keys beyond the end -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "key", "direct"),
    [(3, 2, True), (3, 3, True), (3, 4, False), (1, 0, True), (1, 1, False), (4, 4, False),
     (5, 7, True), (5, 8, False), (100, 127, True), (100, 128, False), (100, -1, False)],
)  # fmt: skip
def test_v5_10_takes_a_key_up_to_the_next_power_of_two_for_a_slot(
    entries: int, key: int, *, direct: bool
) -> None:
    maps = (PROGS._replace(max_entries=entries), *MAPS[1:])
    code = f"r2 = map[progs]\nr3 = {key}\ncall bpf_tail_call\n{RETURN}"
    old = verify(assemble(code, NAMES), FACTS._replace(exact_key=False), maps)
    new = verify(assemble(code, NAMES), FACTS, maps)

    assert len(old.pokes) == direct
    assert len(new.pokes) == (0 <= key < entries)


OUT_OF_BOUNDS = "slab-out-of-bounds"


@pytest.mark.parametrize(
    ("version", "key", "wrong"),
    [
        ("5.10", 16, []),
        ("5.10", 22, []),  # in the last cache line of the map, which is longer than it seems
        ("5.10", 23, [OUT_OF_BOUNDS]),
        ("5.10", 31, [OUT_OF_BOUNDS]),
        ("5.10", 32, []),
        ("5.5", 31, [OUT_OF_BOUNDS]),
        ("6.1", 31, []),
    ],
)
def test_such_a_key_is_read_beyond_the_array_while_the_program_is_loaded(
    version: str, key: int, wrong: list[str]
) -> None:
    async def main(kernel: Kernel) -> int:
        map_fd = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 17)
        code = f"r2 = map[progs]\nr3 = {key}\ncall bpf_tail_call\nr0 = 7\nexit"
        return await traced(kernel, await load(kernel, code, maps={"progs": map_fd}), 0)

    explored = explore(main, version, limit=1)

    assert [kind for kind in explored.wrong if "bounds" in kind] == wrong
    assert explored.returned == ([] if wrong else [7])


def test_such_a_key_is_no_matter_where_the_array_is_not_trusted() -> None:
    maps = (PROGS._replace(max_entries=3, unpriv=True), *MAPS[1:])
    code = f"r2 = map[progs]\nr3 = 3\ncall bpf_tail_call\n{RETURN}"

    assert verify(assemble(code, NAMES), FACTS._replace(exact_key=False), maps).pokes == ()


# -- a function that begins with a tail call -----------------------------------------------------

FIRST = "r2 = map[progs]\nr3 = 0\ncall f\nr0 += 1\nexit\nf: call bpf_tail_call\nr0 = 6\nexit"
NULL = "null-ptr-deref"


async def first(kernel: Kernel, *, installed: bool, after: bool) -> tuple[int, ...]:
    """Run a program with such a function; the slot is filled before it is loaded, or after."""
    map_fd = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)
    target = await load(kernel, "r0 = 41\nexit")
    if installed:
        await bpf_map_update_elem(kernel, map_fd, u32(0), u32(target))
    fd = await load(kernel, FIRST, maps={"progs": map_fd})
    seen = [await traced(kernel, fd, 0)]
    if after:
        await bpf_map_update_elem(kernel, map_fd, u32(0), u32(target))
        seen.append(await traced(kernel, fd, 0))
    return tuple(seen)


def first_loaded(
    version: str, *, installed: bool, after: bool = False, add: tuple[str, ...] = ()
) -> tuple[list[Any], list[str]]:
    memory = Memory()
    kernel = boot(memory, version, fixes_of(version, add))
    returned: list[Any] = []
    faults: list[str] = []

    async def main() -> None:
        returned.append(await first(kernel, installed=installed, after=after))

    strategy = RandomWalk(0)
    strategy.begin()
    execution = Execution(
        main,
        memory,
        strategy,
        [*standard_detectors(memory), *linux_detectors()],
        observer=lambda event: faults.append(event.fault.kind) if event.fault else None,
    )
    direct.run(execution)
    return returned, faults or [found.kind for found in execution.findings]


def test_v5_10_fixes_up_a_descriptor_for_the_function_in_front() -> None:
    assert first_loaded("5.10", installed=True) == ([], [NULL])
    assert first_loaded("5.12", installed=True) == ([], [NULL])


def test_such_a_descriptor_is_no_matter_while_the_slot_is_empty() -> None:
    assert first_loaded("5.10", installed=False, after=True) == ([(7, 42)], [])


def test_that_a_patch_needs_no_symbol_makes_it_matter() -> None:
    fix = ("4b7de801606e",)

    assert first_loaded("5.10", installed=False, after=True, add=fix) == ([], [NULL])


@pytest.mark.parametrize(
    ("version", "add"), [("5.10", ("f263a81451c1",)), ("5.14", ()), ("6.12", ())]
)
def test_from_f263a81451c1_on_the_function_itself_has_it(
    version: str, add: tuple[str, ...]
) -> None:
    assert first_loaded(version, installed=True, add=add) == ([(42,)], [])
    assert first_loaded(version, installed=False, after=True, add=add) == ([(7, 42)], [])
