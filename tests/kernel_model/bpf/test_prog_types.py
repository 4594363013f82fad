"""Rules of program types: what they attach to, and what those that may sleep may use."""

from typing import Any

import pytest

from kernel_model.bpf.prog_attr import (
    BPF_F_SLEEPABLE,
    BPF_LSM_MAC,
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_ITER,
    BPF_TRACE_RAW_TP,
)
from kernel_model.linux.errno import EACCES, EINVAL
from tests.kernel_model.bpf.loading import attempt

DO_NOTHING = "r0 = 0\nexit"
ATTACH = [
    (BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, "", 0, "Tracing programs must provide btf_id"),
    (BPF_PROG_TYPE_TRACING, 0, "vfs_read", 0, ""),
    (BPF_PROG_TYPE_TRACING, BPF_MODIFY_RETURN, "vfs_read", 0, "vfs_read() is not modifiable"),
    (BPF_PROG_TYPE_LSM, BPF_LSM_MAC, "vfs_read", 0, "points to wrong type name vfs_read"),
    (BPF_PROG_TYPE_RAW_TRACEPOINT, 0, "", BPF_F_SLEEPABLE,
     "Only fentry/fexit/fmod_ret and lsm programs can be sleepable"),
    (BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, "vfs_read", BPF_F_SLEEPABLE,
     "vfs_read is not sleepable"),
    (BPF_PROG_TYPE_TRACING, BPF_MODIFY_RETURN, "should_failslab", BPF_F_SLEEPABLE,
     "should_failslab is not sleepable"),
    (BPF_PROG_TYPE_LSM, BPF_LSM_MAC, "bpf_lsm_file_mprotect", BPF_F_SLEEPABLE,
     "bpf_lsm_file_mprotect is not sleepable"),
]  # fmt: skip


@pytest.mark.parametrize(("prog_type", "attach_type", "attach_to", "flags", "message"), ATTACH)
def test_attach_refused(
    prog_type: int, attach_type: int, attach_to: str, flags: int, message: str
) -> None:
    attributes: dict[str, Any] = {
        "expected_attach_type": attach_type,
        "attach_to": attach_to,
        "flags": flags,
    }
    errno, log = attempt(DO_NOTHING, prog_type, **attributes)

    assert message in log
    assert errno == EINVAL


@pytest.mark.parametrize(
    ("prog_type", "attach_type", "attach_to", "flags"),
    [
        (BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, "vfs_read", 0),
        (BPF_PROG_TYPE_TRACING, BPF_MODIFY_RETURN, "security_file_open", 0),
        (BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, "__x64_sys_nanosleep", BPF_F_SLEEPABLE),
        (BPF_PROG_TYPE_TRACING, BPF_MODIFY_RETURN, "__x64_sys_nanosleep", BPF_F_SLEEPABLE),
        (BPF_PROG_TYPE_LSM, BPF_LSM_MAC, "bpf_lsm_bprm_committed_creds", BPF_F_SLEEPABLE),
        (BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER, "bpf_iter_task", BPF_F_SLEEPABLE),  # v5.10's gap
        (BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP, "sched_switch", BPF_F_SLEEPABLE),
    ],
)
def test_attach_accepted(prog_type: int, attach_type: int, attach_to: str, flags: int) -> None:
    attributes: dict[str, Any] = {
        "expected_attach_type": attach_type,
        "attach_to": attach_to,
        "flags": flags,
    }

    assert attempt(DO_NOTHING, prog_type, **attributes)[0] == 0


SLEEPABLE: dict[str, Any] = {
    "prog_type": BPF_PROG_TYPE_TRACING,
    "expected_attach_type": BPF_TRACE_FENTRY,
    "attach_to": "__x64_sys_nanosleep",
    "flags": BPF_F_SLEEPABLE,
}


@pytest.mark.parametrize("version", ["5.8", "5.9"])
def test_sleepable_is_an_unknown_flag_before_5_10(version: str) -> None:
    assert attempt(DO_NOTHING, version=version, **SLEEPABLE) == (EINVAL, "")


ONLY_PLAIN = "Sleepable programs can only use array and hash maps"
MAPS = [
    ("array", "5.10", ""),
    ("hash", "5.10", ""),
    ("alloc", "5.10", "Sleepable programs can only use preallocated hash maps"),
    ("percpu", "5.10", ONLY_PLAIN),
    ("outer", "5.10", ONLY_PLAIN),
    ("outer_hash", "5.11", ONLY_PLAIN),
    ("percpu", "5.12", ""),
    ("outer", "5.12", ""),
    ("outer_hash", "5.12", ""),
    ("alloc", "5.12", "Sleepable programs can only use preallocated maps"),
    ("outer_alloc", "5.12", "Sleepable programs can only use preallocated maps"),
]


@pytest.mark.parametrize(("map_name", "version", "message"), MAPS)
def test_maps_of_sleepable_programs(map_name: str, version: str, message: str) -> None:
    code = f"r1 = map[{map_name}]\nr0 = 0\nexit"
    errno, log = attempt(code, version=version, **SLEEPABLE)

    assert message in log
    assert errno == (EINVAL if message else 0)


COPY = "r1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\ncall bpf_copy_from_user\nr0 = *(u64 *)(r10 -8)\n"


def test_only_sleepable_programs_copy_from_user() -> None:
    code = f"{COPY}\nr0 = 0\nexit"
    errno, log = attempt(code)

    assert "unknown func bpf_copy_from_user#148" in log
    assert errno == EINVAL
    assert attempt(code, **SLEEPABLE)[0] == 0


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("r2 = r0", "R2 min value is negative, either use unsigned or 'var &= const'"),
        ("r2 = -1", "R2 min value is negative"),
        ("r2 = 536870912", "R2 unbounded memory access, use 'var &= const' or"),
        ("r2 = 16", "invalid stack type R1 off=-8 access_size=16"),
        ("r2 = r1", "R2 type=fp expected=inv"),
    ],
)
def test_size_of_a_copy_is_checked(size: str, message: str) -> None:
    code = f"call 5\n{COPY.replace('r2 = 8', size)}\nr0 = 0\nexit"
    errno, log = attempt(code, **SLEEPABLE)

    assert message in log
    assert errno == EACCES


def test_tracing_program_with_allocating_hash_is_warned() -> None:
    errno, log = attempt("r1 = map[alloc]\nr0 = 0\nexit")

    assert "are unsafe. Switch to preallocated hash maps." in log
    assert errno == 0
