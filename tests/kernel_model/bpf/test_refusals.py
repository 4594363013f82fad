"""Programs that are refused: errno and words."""

from typing import Any

import pytest

from kernel_model.bpf import verifier
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_SCHED_CLS,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.linux.errno import E2BIG, EACCES, EBADF, EINVAL, ENOTSUPP
from sim.errors import MisuseError
from tests.kernel_model.bpf.loading import FETCH, LOCK, attempt

REFUSED = [
    # structure, maps
    ("r0 = r0", EINVAL, "last insn is not an exit or jmp"),
    ("call 93\nexit", EINVAL, "unknown func bpf_spin_lock#93"),
    ("r1 = map[fd:99]\nr0 = 0\nexit", EBADF, "fd 99 is not pointing to valid bpf_map"),
    ("r1 = map[locked]\nr0 = 0\nexit", EINVAL, "tracing progs cannot use bpf_spin_lock yet"),
    ("r1 = map_value[hash]+0\nr0 = 0\nexit", EINVAL, "no direct value access support"),
    ("r1 = map_value[array]+0\nr0 = 0\nexit", ENOTSUPP, "value pointer, value_size=8 off=0"),
    ("r1 = map_value[one]+8\nr0 = 0\nexit", EINVAL, "value pointer, value_size=8 off=8"),
    ("r1 = map_value[one]+536870912\nr0 = 0\nexit", EINVAL, "offset of 536870912 is not allowed"),
    # registers
    ("exit", EACCES, "0: (95) exit\nR0 !read_ok"),
    ("r0 = r2\nexit", EACCES, "0: (bf) r0 = r2\nR2 !read_ok"),
    ("r0 += 1\nexit", EACCES, "R0 !read_ok"),
    ("if r3 == 0 goto +0\nr0 = 0\nexit", EACCES, "R3 !read_ok"),
    ("r0 = 0\nif r0 == r3 goto +0\nexit", EACCES, "R3 !read_ok"),
    ("call bpf_ktime_get_ns\nr0 = r1\nexit", EACCES, "R1 !read_ok"),
    ("r6 = 1\ncall f\nexit\nf: r0 = r6\nexit", EACCES, "3: (bf) r0 = r6\nR6 !read_ok"),
    ("call f\nr0 = r1\nexit\nf: r0 = 0\nexit", EACCES, "1: (bf) r0 = r1\nR1 !read_ok"),
    # memory
    ("r1 = 5\nr0 = *(u8 *)(r1 +0)\nexit", EACCES, "R1 invalid mem access 'inv'"),
    (FETCH.format("array") + "\nr0 = *(u32 *)(r0 +0)\nexit", EACCES,
     "6: (61) r0 = *(u32 *)(r0 +0)\nR0 invalid mem access 'map_value_or_null'"),
    (FETCH.format("array") + "\nif r0 == 0 goto +1\nr0 = *(u64 *)(r0 +4)\nr0 = 0\nexit", EACCES,
     "invalid access to map value, value_size=8 off=4 size=8\n"
     "R0 min value is outside of the allowed memory range"),
    (FETCH.format("array") + "\nif r0 == 0 goto +2\nr0 += -1\n*(u8 *)(r0 +0) = 1\nr0 = 0\nexit",
     EACCES, "invalid access to map value, value_size=8 off=-1 size=1"),
    (FETCH.format("array") + "\nif r0 == 0 goto +2\nr1 = 1\nlock *(u32 *)(r0 +2) += r1\nr0 = 0\n"
     "exit", EACCES, "misaligned value access off (0x0; 0x0)+0+2 size 4"),
    (FETCH.format("array") + "\nr0 += 4\nexit", EACCES,
     "R0 pointer arithmetic on map_value_or_null prohibited, null-check it first"),
    (FETCH.format("rdonly") + "\nif r0 == 0 goto +1\n*(u8 *)(r0 +0) = 1\nr0 = 0\nexit", EACCES,
     "write into map forbidden, value_size=8 off=0 size=1"),
    (FETCH.format("wronly") + "\nif r0 == 0 goto +1\nr0 = *(u8 *)(r0 +1)\nexit", EACCES,
     "read from map forbidden, value_size=8 off=1 size=1"),
    ("r1 = map[outer]\n*(u64 *)(r1 +272) = 0\nr0 = 0\nexit", EACCES,
     "only read from bpf_array is supported"),
    ("r1 = map[hash]\n*(u64 *)(r1 +0) = 0\nr0 = 0\nexit", EACCES,
     "only read from bpf_htab is supported"),
    ("r1 = map[array]\nr0 = *(u64 *)(r1 -8)\nexit", EACCES,
     "R1 is bpf_array invalid negative access: off=-8"),
    (FETCH.format("outer") + "\nif r0 == 0 goto +1\n*(u8 *)(r0 +0) = 0\nr0 = 0\nexit", EACCES,
     "only read from bpf_array is supported"),
    ("*(u64 *)(r1 +0) = 1\nr0 = 0\nexit", EACCES, "BPF_ST stores into R1 ctx is not allowed"),
    ("r0 = 0\nlock *(u64 *)(r1 +0) += r0\nexit", EACCES,
     "BPF_XADD stores into R1 ctx is not allowed"),
    ("r0 = 0\n*(u64 *)(r1 +0) = r0\nexit", EACCES, "invalid bpf_context access off=0 size=8"),
    ("r0 = *(u64 *)(r1 -8)\nexit", EACCES, "invalid bpf_context access off=-8 size=8"),
    ("r1 += 8\nr0 = *(u64 *)(r1 +0)\nexit", EACCES,
     "dereference of modified ctx ptr R1 off=8 disallowed"),
    # the stack
    ("r0 = *(u64 *)(r10 -8)\nexit", EACCES, "invalid read from stack off -8+0 size 8"),
    ("*(u32 *)(r10 -8) = 0\nr0 = *(u64 *)(r10 -8)\nexit", EACCES,
     "invalid read from stack off -8+4 size 8"),
    ("*(u64 *)(r10 -4) = 0\nr0 = 0\nexit", EACCES,
     "misaligned stack access off (0x0; 0x0)+0+-4 size 8"),
    ("*(u64 *)(r10 -520) = 0\nr0 = 0\nexit", EACCES, "invalid stack off=-520 size=8"),
    ("*(u64 *)(r10 +0) = 0\nr0 = 0\nexit", EACCES, "invalid stack off=0 size=8"),
    ("*(u64 *)(r10 -8) = r1\nr0 = *(u32 *)(r10 -8)\nexit", EACCES,
     "invalid size of register fill"),
    ("r1 = r10\ncall f\nexit\nf: r0 = r10\nexit", EINVAL,
     "cannot return stack pointer to the caller"),
    ("*(u64 *)(r10 -512) = 0\ncall f\nexit\nf: *(u8 *)(r10 -1) = 0\nr0 = 0\nexit", EACCES,
     "combined stack size of 2 calls is 544. Too large"),
    ("call f1\nexit\n" + "".join(f"f{i}: call f{i + 1}\nexit\n" for i in range(1, 8))
     + "f8: r0 = 0\nexit", E2BIG, "the call stack of 9 frames is too deep"),
    # pointer arithmetic
    ("r1 = map[array]\nr1 += 8\nr0 = 0\nexit", EACCES,
     "R1 pointer arithmetic on map_ptr prohibited"),
    ("r1 *= 2\nr0 = 0\nexit", EACCES, "R1 pointer arithmetic with *= operator prohibited"),
    ("r1 |= 1\nr0 = 0\nexit", EACCES, "R1 bitwise operator |= on pointer prohibited"),
    ("r1 += r10\nr0 = 0\nexit", EACCES, "R1 pointer += pointer prohibited"),
    ("w1 += 1\nr0 = 0\nexit", EACCES, "R1 32-bit pointer arithmetic prohibited"),
    ("r2 = r10\nr2 -= 8\nr0 = 0\nexit", EACCES,
     "R2 subtraction from stack pointer prohibited"),
    ("r2 = 8\nr2 -= r1\nr0 = 0\nexit", EACCES, "R2 tried to subtract pointer from scalar"),
    # helpers
    ("r2 = r10\nr1 = 0\ncall 1\nexit", EACCES, "R1 type=inv expected=map_ptr"),
    ("r1 = map[array]\nr2 = 0\ncall 1\nexit", EACCES,
     "R2 type=inv expected=fp, pkt, pkt_meta, map_value"),
    ("r2 = r10\nr1 = map[array]\ncall 1\nexit", EACCES,
     "invalid stack type R2 off=0 access_size=4"),
    ("r2 = r10\nr2 += -2\nr1 = map[array]\ncall 1\nexit", EACCES,
     "invalid stack type R2 off=-2 access_size=4"),
    ("r2 = r10\nr2 += -4\nr1 = map[array]\ncall 1\nexit", EACCES,
     "invalid indirect read from stack off -4+0 size 4"),
    ("*(u64 *)(r10 -8) = r1\nr2 = r10\nr2 += -8\nr1 = map[array]\ncall 1\nexit", EACCES,
     "invalid indirect read from stack off -8+0 size 4"),
    (FETCH.format("array") + "\nif r0 == 0 goto +4\nr2 = r0\nr2 += 6\nr1 = map[array]\ncall 1\n"
     "r0 = 0\nexit", EACCES, "invalid access to map value, value_size=8 off=6 size=4"),
    ("r1 = map[rdonly]\nr2 = r10\nr2 += -8\n*(u64 *)(r10 -8) = 0\nr3 = r2\nr4 = 0\ncall 2\nexit",
     EACCES, "write into map forbidden"),
    ("r1 = map[outer]\nr2 = r10\nr2 += -8\n*(u64 *)(r10 -8) = 0\nr3 = r2\nr4 = 0\ncall 2\nexit",
     EINVAL, "cannot pass map_type 12 into func bpf_map_update_elem#2"),
    ("r1 = map[outer_hash]\nr2 = r10\nr2 += -8\n*(u64 *)(r10 -8) = 0\ncall 3\nexit", EINVAL,
     "cannot pass map_type 13 into func bpf_map_delete_elem#3"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "errno", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(code: str, errno: int, message: str) -> None:
    got, log = attempt(code)

    assert message in log
    assert got == errno


REFUSED_LOCKS = [
    (f"{LOCK}\ncall 93\nout: r0 = 0\nexit", EINVAL, "bpf_spin_unlock is missing"),
    (f"{LOCK}\ncall 94\nout: r0 = 0\nexit", EACCES, "bpf_spin_unlock without taking a lock"),
    (f"{LOCK}\ncall 93\ncall 5\nout: r0 = 0\nexit", EINVAL,
     "function calls are not allowed while holding a lock"),
    (f"{LOCK}\nr1 += 4\ncall 93\nout: r0 = 0\nexit", EACCES,
     "off 12 doesn't point to 'struct bpf_spin_lock'"),
    (f"{LOCK}\nr0 = *(u32 *)(r1 +0)\nout: r0 = 0\nexit", EACCES,
     "bpf_spin_lock cannot be accessed directly by load/store"),
    (f"{LOCK}\nr8 = r1\n{FETCH.format('locked')}\nif r0 == 0 goto out\nr9 = r0\nr9 += 8\nr1 = r8\n"
     "call 93\nr1 = r9\ncall 94\nout: r0 = 0\nexit", EACCES, "bpf_spin_unlock of different lock"),
    (f"{FETCH.format('array')}\nif r0 == 0 goto out\nr1 = r0\ncall 93\nout: r0 = 0\nexit", EACCES,
     "map has to have BTF in order to use bpf_spin_lock"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "errno", "message"), REFUSED_LOCKS)
def test_lock_refused(code: str, errno: int, message: str) -> None:
    got, log = attempt(code, BPF_PROG_TYPE_SCHED_CLS)

    assert message in log
    assert got == errno


RETURNS = [
    ("r0 = 1\nexit", "has value (0x1; 0x0) should have been in (0x0; 0x0)"),
    ("call 5\nexit", "has unknown scalar value should have been in (0x0; 0x0)"),
    ("r0 = r1\nexit", "is not a known value (ctx)"),
]


@pytest.mark.parametrize(("code", "message"), RETURNS)
@pytest.mark.parametrize("attach_type", [BPF_TRACE_FENTRY, BPF_TRACE_FEXIT])
def test_fentry_and_fexit_return_0(code: str, message: str, attach_type: int) -> None:
    attributes: dict[str, Any] = {"expected_attach_type": attach_type, "attach_to": "vfs_read"}
    errno, log = attempt(code, BPF_PROG_TYPE_TRACING, **attributes)

    assert f"At program exit the register R0 {message}" in log
    assert errno == EINVAL


def test_compared_value_may_be_the_right_one() -> None:
    attributes: dict[str, Any] = {"expected_attach_type": BPF_TRACE_FENTRY, "attach_to": "vfs_read"}
    code = "call 5\nr6 = r0\nif r6 != 0 goto zero\nexit\nzero: r0 = 0\nexit"

    assert attempt(code, BPF_PROG_TYPE_TRACING, **attributes)[0] == 0


# -- the rest ------------------------------------------------------------------------------------


def test_program_too_large_to_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_model.bpf.do_check.BPF_COMPLEXITY_LIMIT_INSNS", 10)
    verifier.verify.cache_clear()
    errno, log = attempt("r0 = 0\nagain: r0 += 1\nif r0 != 77 goto again\nexit")
    verifier.verify.cache_clear()

    assert "BPF program is too large. Processed 11 insn" in log
    assert errno == E2BIG


def test_too_many_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_model.bpf.verifier.MAX_USED_MAPS", 2)
    code = "r1 = map[array]\nr1 = map[hash]\nr1 = map[array]\n{}r0 = 0\nexit"

    assert attempt(code.format(""))[0] == 0
    assert attempt(code.format("r1 = map[one]\n"))[0] == E2BIG


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("call bpf_probe_read\nexit", "the helper bpf_probe_read is not modelled"),
        ("r0 = *(u32 *)skb[0]\nexit", "packet access is not modelled"),
    ],
)
def test_what_only_linux_can_run_is_misuse(code: str, what: str) -> None:
    with pytest.raises(MisuseError, match=what):
        attempt(code)
