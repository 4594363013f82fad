"""What accepted programs are rewritten to, and what is accepted at all."""

import pytest

from kernel_model.bpf import verifier
from kernel_model.bpf.prog import BpfProg, bpf_prog_get, bpf_prog_put
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_SCHED_CLS
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall
from tests.kernel_model.bpf.loading import FETCH, LOCK, attempt, make_maps
from tests.kernel_model.bpf.running import load, run

SELFTEST = """
    *(u32 *)(r10 -4) = 0
    r2 = r10
    r2 += -4
    r1 = map[outer]
    call bpf_map_lookup_elem
    if r0 == 0x0 goto missing
    r2 = r10
    r2 += -4
    r1 = r0
    call bpf_map_lookup_elem
    if r0 == 0x0 goto missing
    r0 = *(u32 *)(r0 +0)
    exit
missing:
    r0 = -1
    exit
"""


def listed(code: str) -> str:
    """The rewritten program."""

    async def main(kernel: Kernel) -> str:
        fd = await load(kernel, code, maps=await make_maps(kernel))
        async with syscall(kernel):
            prog = await bpf_prog_get(kernel, fd)
            assert isinstance(prog, BpfProg)
            text = prog.listing()
            await bpf_prog_put(kernel, prog)
        return text

    text: str = run(main)
    return text


# -- rewriting -----------------------------------------------------------------------------------


def test_lookups_in_outer_and_inner_array_are_inlined() -> None:
    assert listed(SELFTEST) == (
        "   0: (62) *(u32 *)(r10 -4) = 0\n"
        "   1: (bf) r2 = r10\n"
        "   2: (07) r2 += -4\n"
        "   3: (18) r1 = map[id:10]\n"
        "   5: (07) r1 += 272\n"
        "   6: (61) r0 = *(u32 *)(r2 +0)\n"
        "   7: (35) if r0 >= 0x2 goto pc+5\n"
        "   8: (67) r0 <<= 3\n"
        "   9: (0f) r0 += r1\n"
        "  10: (79) r0 = *(u64 *)(r0 +0)\n"
        "  11: (15) if r0 == 0x0 goto pc+1\n"
        "  12: (05) goto pc+1\n"
        "  13: (b7) r0 = 0\n"
        "  14: (15) if r0 == 0x0 goto pc+13\n"
        "  15: (bf) r2 = r10\n"
        "  16: (07) r2 += -4\n"
        "  17: (bf) r1 = r0\n"
        "  18: (07) r1 += 272\n"
        "  19: (61) r0 = *(u32 *)(r2 +0)\n"
        "  20: (35) if r0 >= 0x3 goto pc+3\n"
        "  21: (67) r0 <<= 3\n"
        "  22: (0f) r0 += r1\n"
        "  23: (05) goto pc+1\n"
        "  24: (b7) r0 = 0\n"
        "  25: (15) if r0 == 0x0 goto pc+2\n"
        "  26: (61) r0 = *(u32 *)(r0 +0)\n"
        "  27: (95) exit\n"
        "  28: (b7) r0 = -1\n"
        "  29: (95) exit\n"
    )


@pytest.mark.parametrize(
    ("outer", "call"),
    [
        ("outer_of_hashes", "call __htab_map_lookup_elem#65536"),
        ("outer_of_resized", "call array_map_lookup_elem#1000"),
    ],
)
def test_lookup_in_an_inner_map_that_is_not_inlined_wholly(outer: str, call: str) -> None:
    assert f"r1 = r0\n  18: (85) {call}\n" in listed(SELFTEST.replace("outer", outer))


def test_lookup_in_a_hash_of_maps_calls_the_hash() -> None:
    text = listed(SELFTEST.replace("outer", "outer_hash"))

    assert "   5: (85) call __htab_map_lookup_elem#65536\n   6: (15) if r0 == 0x0 goto pc+2" in text


def test_calls_about_a_known_map_are_patched() -> None:
    code = """
        *(u64 *)(r10 -8) = 0
        r2 = r10
        r2 += -8
        r3 = r2
        r4 = 0
        r1 = map[hash]
        call bpf_map_update_elem
        r2 = r10
        r2 += -8
        r1 = map[hash]
        call bpf_map_delete_elem
        r2 = r10
        r2 += -8
        r1 = map[percpu]
        call bpf_map_lookup_elem
        call bpf_get_prandom_u32
        exit
    """
    calls = [line.split("call ")[1] for line in listed(code).splitlines() if "call" in line]

    assert calls == [
        "htab_map_update_elem#1000",
        "htab_map_delete_elem#1001",
        "percpu_array_map_lookup_elem#1002",
        "bpf_get_prandom_u32#7",
    ]


def test_division_is_guarded() -> None:
    assert listed("r0 = 7\nr1 = 2\nw0 /= w1\nr0 %= r1\nr0 /= 3\nr0 = 0\nexit") == (
        "   0: (b7) r0 = 7\n"
        "   1: (b7) r1 = 2\n"
        "   2: (bc) w1 = w1\n"
        "   3: (55) if r1 != 0x0 goto pc+2\n"
        "   4: (ac) w0 ^= w0\n"
        "   5: (05) goto pc+1\n"
        "   6: (3c) w0 /= w1\n"
        "   7: (15) if r1 == 0x0 goto pc+1\n"
        "   8: (9f) r0 %= r1\n"
        "   9: (37) r0 /= 3\n"
        "  10: (b7) r0 = 0\n"
        "  11: (95) exit\n"
    )


def test_value_of_an_array_with_one_element_has_an_address() -> None:
    assert "r1 = map[id:2][0]+4" in listed("r1 = map_value[one]+4\nr0 = *(u32 *)(r1 +0)\nexit")


@pytest.mark.parametrize("outer", ["outer", "outer_hash"])
def test_pointer_to_an_inner_map_orders_what_depends_on_it(outer: str) -> None:
    async def main(kernel: Kernel) -> list[str]:
        fd = await load(kernel, SELFTEST.replace("outer", outer), maps=await make_maps(kernel))
        async with syscall(kernel):
            prog = await bpf_prog_get(kernel, fd)
            assert isinstance(prog, BpfProg)
            lines = prog.listing().splitlines()
            marked = [line for line in lines if int(line[:4]) in prog.text.derefs]
            await bpf_prog_put(kernel, prog)
        return [line[6:] for line in marked]

    assert run(main) == ["(79) r0 = *(u64 *)(r0 +0)"]


def test_verdict_depends_on_nothing_but_content() -> None:
    async def main(kernel: Kernel) -> None:
        maps = await make_maps(kernel)
        await load(kernel, SELFTEST, maps=maps)
        hits = verifier.verify.cache_info().hits
        await load(kernel, SELFTEST, maps=maps)
        assert verifier.verify.cache_info().hits == hits + 1

    run(main)


# -- accepted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        # a pointer survives a spill, and its NULL check counts for all copies
        f"{FETCH.format('array')}\nr6 = r0\n*(u64 *)(r10 -16) = r0\nif r6 == 0 goto out\n"
        "r1 = *(u64 *)(r10 -16)\nr0 = *(u64 *)(r1 +0)\nr0 = *(u64 *)(r0 +0)\nout: r0 = 0\nexit"
        .replace("r0 = *(u64 *)(r0 +0)\n", ""),
        # the other way round
        f"{FETCH.format('array')}\nif r0 != 0 goto +2\nr0 = 0\nexit\nr0 = *(u64 *)(r0 +0)\nexit",
        # a second check is decided
        f"{FETCH.format('array')}\nif r0 == 0 goto out\nif r0 != 0 goto +1\nr0 = r9\n"
        "r0 = *(u64 *)(r0 +0)\nout: r0 = 0\nexit",
        # constants decide branches
        "r0 = 3\nr0 <<= 2\nif r0 == 12 goto +1\nr0 = r9\nexit",
        "r0 = 5\nr1 = 6\nif r1 > r0 goto +1\nr0 = r9\nexit",
        # a variable offset is left to the run
        f"{FETCH.format('array')}\nif r0 == 0 goto out\nr6 = r0\ncall 7\nr0 &= 7\nr6 += r0\n"
        "r0 = *(u8 *)(r6 +0)\nout: r0 = 0\nexit",
        # values as keys, reading fields of maps, difference of pointers, negation
        f"{FETCH.format('array')}\nif r0 == 0 goto out\nr2 = r0\nr1 = map[array]\n"
        "call 1\nout: r0 = 0\nexit",
        "r1 = map[array]\nr0 = *(u32 *)(r1 +36)\nexit",
        "r0 = r10\nr0 -= r1\nr0 = -r0\nr0 = be16 r0\nexit",
        # a caller's stack is the callee's to write
        "r1 = r10\nr1 += -8\ncall f\nr0 = *(u64 *)(r10 -8)\nexit\n"
        "f: *(u64 *)(r1 +0) = 4\nr0 = 0\nexit",
        # a zero that is stored is known, a counted loop ends
        "*(u64 *)(r10 -8) = 0\nr1 = *(u64 *)(r10 -8)\nr0 = 0\nif r1 == 0 goto +1\nr0 = r9\nexit",
        "r0 = 0\nagain: r0 += 1\nif r0 != 100 goto again\nexit",
        # a loop whose end is not known
        f"r6 = 0\nagain: {FETCH.format('hash')}\nr6 += 1\ncall 7\nif r0 != 0 goto again\nexit",
        # division and shift by registers
        "r0 = 8\nr1 = 0\nw0 /= w1\nr0 %= r1\nr0 <<= r1\nexit",
        "r1 = *(u64 *)(r1 +0)\nlock *(u64 *)(r10 -8) += r1\nr0 = 0\nexit".replace(
            "lock", "*(u64 *)(r10 -8) = r1\nlock"),
    ],
    ids=range(15),
)  # fmt: skip
def test_accepted(code: str) -> None:
    errno, log = attempt(code)

    assert errno == 0, log


def test_locks_accepted() -> None:
    code = f"{LOCK}\ncall 93\n*(u64 *)(r7 +0) = 5\nr1 = r7\nr1 += 8\ncall 94\nout: r0 = 0\nexit"

    assert attempt(code, BPF_PROG_TYPE_SCHED_CLS)[0] == 0
