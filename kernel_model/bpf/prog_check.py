"""kernel/bpf/syscall.c, bpf_prog_load (v5.10): what is refused before a program is looked at

Not modelled: as in `kernel_model.bpf.prog_attr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.bpf.capability import bpf_capable
from kernel_model.bpf.insn import BPF_MAXINSNS
from kernel_model.bpf.map_create import bpf_obj_name_cpy
from kernel_model.bpf.prog_attr import (
    BPF_COMPLEXITY_LIMIT_INSNS,
    BPF_F_ANY_ALIGNMENT,
    BPF_F_SLEEPABLE,
    BPF_F_STRICT_ALIGNMENT,
    BPF_F_TEST_RND_HI32,
    BPF_F_TEST_STATE_FREQ,
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_SK_LOOKUP,
    BPF_PROG_TYPE_SOCKET_FILTER,
    BPF_PROG_TYPE_TRACING,
    ProgLoadAttr,
)
from kernel_model.bpf.prog_types import PROG_TYPES
from kernel_model.bpf.uaccess import copy_from_user
from kernel_model.fixes import Fix
from kernel_model.linux.errno import E2BIG, EFAULT, EINVAL, EPERM
from sim.errors import MisuseError

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


async def check_attr(kernel: Kernel, attr: ProgLoadAttr) -> int:
    """What can be refused before there is a program: 0 or -errno."""
    flags = (
        BPF_F_STRICT_ALIGNMENT
        | BPF_F_ANY_ALIGNMENT
        | BPF_F_TEST_STATE_FREQ
        | BPF_F_TEST_RND_HI32
        | (BPF_F_SLEEPABLE if kernel.has(Fix.SLEEPABLE) else 0)
    )
    if attr.unused_tail or attr.prog_flags & ~flags:
        return -EINVAL
    license = None if attr.license is None else attr.license.encode()
    if isinstance(await copy_from_user(kernel, license, 0), int):
        return -EFAULT
    limit = BPF_COMPLEXITY_LIMIT_INSNS if bpf_capable(kernel) else BPF_MAXINSNS
    if not 0 < insn_cnt(attr) <= limit:
        return -E2BIG
    if attr.prog_type != BPF_PROG_TYPE_SOCKET_FILTER and not bpf_capable(kernel):
        return -EPERM
    return _check_attach(attr)


def _check_attach(attr: ProgLoadAttr) -> int:
    """bpf_prog_load_check_attach(): 0 or -EINVAL."""
    if attr.attach_btf_id and not attr.attach_prog_fd:
        raise MisuseError("attach_btf_id without attach_prog_fd: name a kernel function, attach_to")
    if attr.attach_prog_fd and attr.attach_to:
        raise MisuseError("attach_prog_fd with attach_to: number a function of it, attach_btf_id")
    named = attr.attach_to or attr.attach_btf_id
    tracing, extension = BPF_PROG_TYPE_TRACING, BPF_PROG_TYPE_EXT
    if named and attr.prog_type not in (tracing, extension, BPF_PROG_TYPE_LSM):
        return -EINVAL
    if attr.attach_prog_fd and attr.prog_type not in (tracing, extension):
        return -EINVAL
    return -EINVAL if attr.prog_type == extension and attr.expected_attach_type else 0


async def copy_and_name(kernel: Kernel, attr: ProgLoadAttr) -> int:
    """What can be refused before the program is looked at: 0 or -errno."""
    given = None if attr.insns is None else bytes(8 * len(attr.insns))
    if isinstance(await copy_from_user(kernel, given, 8 * insn_cnt(attr)), int):
        return -EFAULT
    if not 0 < attr.prog_type <= BPF_PROG_TYPE_SK_LOOKUP:
        return -EINVAL
    if attr.prog_type not in PROG_TYPES:
        raise MisuseError(f"programs of type {attr.prog_type} are not modelled")
    return bpf_obj_name_cpy(attr.prog_name)


def insn_cnt(attr: ProgLoadAttr) -> int:
    return len(attr.insns or ()) if attr.insn_cnt is None else attr.insn_cnt
