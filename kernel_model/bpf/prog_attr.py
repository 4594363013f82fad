"""include/uapi/linux/bpf.h (v5.10): types, flags and attributes of programs

Not modelled: BTF, so that a program names the kernel function that it is to be attached to instead
of giving its `attach_btf_id`, and the functions of a program have their numbers as ids; the
verifier's log has no level and no limit; program types that have no constant here; flags other than
BPF_F_SLEEPABLE are accepted and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kernel_model.bpf.attr import BpfAttr
from kernel_model.bpf.insn import Insn

# enum bpf_prog_type
BPF_PROG_TYPE_SOCKET_FILTER: Final = 1
BPF_PROG_TYPE_KPROBE: Final = 2
BPF_PROG_TYPE_SCHED_CLS: Final = 3
BPF_PROG_TYPE_TRACEPOINT: Final = 5
BPF_PROG_TYPE_PERF_EVENT: Final = 7
BPF_PROG_TYPE_RAW_TRACEPOINT: Final = 17
BPF_PROG_TYPE_TRACING: Final = 26
BPF_PROG_TYPE_EXT: Final = 28
BPF_PROG_TYPE_LSM: Final = 29
BPF_PROG_TYPE_SK_LOOKUP: Final = 30  # the last one of v5.10

# enum bpf_attach_type; 0 is another type's, and what programs have that need none
BPF_TRACE_RAW_TP: Final = 23
BPF_TRACE_FENTRY: Final = 24
BPF_TRACE_FEXIT: Final = 25
BPF_MODIFY_RETURN: Final = 26
BPF_LSM_MAC: Final = 27
BPF_TRACE_ITER: Final = 28

# Flags of BPF_PROG_LOAD.
BPF_F_STRICT_ALIGNMENT: Final = 1 << 0
BPF_F_ANY_ALIGNMENT: Final = 1 << 1
BPF_F_TEST_RND_HI32: Final = 1 << 2
BPF_F_TEST_STATE_FREQ: Final = 1 << 3
BPF_F_SLEEPABLE: Final = 1 << 4

BPF_COMPLEXITY_LIMIT_INSNS: Final = 1_000_000
BPF_MAX_VAR_OFF: Final = 1 << 29  # of what a pointer may be moved by
MAX_USED_MAPS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgLoadAttr(BpfAttr):
    """BPF_PROG_LOAD.

    insns      None and `license` None are bad pointers
    insn_cnt   None: as many as there are; more: the array ends in an unmapped page
    attach_to  the kernel function that stands for `attach_btf_id`, empty: none
    attach_prog_fd, attach_btf_id  another program, and which function of it (the first is 1)
    log_buf    takes the verifier's log
    func_info  whether BTF describes its functions
    unreliable  numbers (from 0) of functions whose arguments are not as BTF describes them
    """

    prog_type: int
    insns: tuple[Insn, ...] | None
    insn_cnt: int | None = None
    license: str | None = "GPL"
    prog_name: str = ""
    prog_flags: int = 0
    expected_attach_type: int = 0
    attach_to: str = ""
    attach_prog_fd: int = 0
    attach_btf_id: int = 0
    log_buf: bytearray | None = None
    func_info: bool = True
    unreliable: frozenset[int] = frozenset()
