"""kernel/bpf/verifier.c, kernel/trace/bpf_trace.c, net/core/filter.c (v5.10): program types

Which helpers a program may call, what it may be attached to, which maps it may use; and the rules
for programs that may sleep, which cut across the types.

Any name of a kernel function stands for one that exists. Those on the error-injection list are the
system calls (``__x64_sys_...``) and `ERROR_INJECTION`.

Not modelled: the other program types and helpers; the contexts that their programs get.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kernel_model.bpf.attr import (
    BPF_F_NO_PREALLOC,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PERCPU_ARRAY,
)
from kernel_model.bpf.helper_ids import BPF_FUNC
from kernel_model.bpf.prog_attr import (
    BPF_LSM_MAC,
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SCHED_CLS,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
    BPF_TRACE_ITER,
    BPF_TRACE_RAW_TP,
)
from kernel_model.bpf.verifier_state import MapFacts, ProgFacts, Refused, TargetFacts
from kernel_model.linux.errno import EINVAL

_EVERYWHERE: Final = frozenset(
    {
        BPF_FUNC.map_lookup_elem,
        BPF_FUNC.map_update_elem,
        BPF_FUNC.map_delete_elem,
        BPF_FUNC.ktime_get_ns,
        BPF_FUNC.get_prandom_u32,
        BPF_FUNC.get_smp_processor_id,
        BPF_FUNC.tail_call,
    }
)

_HELPERS: Final[Mapping[int, frozenset[BPF_FUNC]]] = MappingProxyType(
    {
        BPF_PROG_TYPE_SCHED_CLS: _EVERYWHERE | {BPF_FUNC.spin_lock, BPF_FUNC.spin_unlock},
        BPF_PROG_TYPE_RAW_TRACEPOINT: _EVERYWHERE,
        BPF_PROG_TYPE_TRACING: _EVERYWHERE,
        BPF_PROG_TYPE_LSM: _EVERYWHERE,
    }
)

PROG_TYPES: Final = frozenset({*_HELPERS, BPF_PROG_TYPE_EXT})
"""The program types that can be loaded."""

NON_SLEEPABLE_ERROR_INJECT: Final = frozenset(
    {"__add_to_page_cache_locked", "should_fail_alloc_page", "should_failslab"}
)
ERROR_INJECTION: Final = NON_SLEEPABLE_ERROR_INJECT | {"bpf_modify_return_test"}
SLEEPABLE_LSM_HOOKS: Final = frozenset({"bpf_lsm_bprm_committed_creds"})

TRAMPOLINES: Final = (BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_MODIFY_RETURN, BPF_LSM_MAC)


def known_helpers(prog: ProgFacts) -> frozenset[int]:
    """The helpers that get_func_proto() has for the program."""
    sleeping = frozenset({BPF_FUNC.copy_from_user} if prog.sleepable else ())
    return _HELPERS.get(prog.ops_type, _EVERYWHERE) | sleeping


def within_error_injection_list(function: str) -> bool:
    return function.startswith("__x64_sys_") or function in ERROR_INJECTION


def check_attach_btf_id(prog: ProgFacts) -> None:
    """May the program be attached to what it names?"""
    attaches = prog.prog_type in (BPF_PROG_TYPE_TRACING, BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_EXT)
    if prog.sleepable and prog.prog_type not in (BPF_PROG_TYPE_TRACING, BPF_PROG_TYPE_LSM):
        raise Refused(EINVAL, "Only fentry/fexit/fmod_ret and lsm programs can be sleepable")
    if not attaches:
        return
    bpf_check_attach_target(prog)
    if prog.prog_type == BPF_PROG_TYPE_LSM and not prog.attach_to.startswith("bpf_lsm_"):
        raise Refused(EINVAL, f"attach_btf_id points to wrong type name {prog.attach_to}")


def bpf_check_attach_target(prog: ProgFacts) -> None:
    """Is there such a function, and may a program of this kind have it?"""
    extension = prog.prog_type == BPF_PROG_TYPE_EXT
    if not prog.attach_to and not prog.attach_btf_id:
        raise Refused(EINVAL, "Tracing programs must provide btf_id")
    if prog.target is not None:
        _check_target_prog(prog, prog.target)
    elif extension:
        raise Refused(EINVAL, "Cannot replace kernel functions")
    if prog.expected_attach_type == BPF_TRACE_RAW_TP and prog.target is not None:
        what = "Only FENTRY/FEXIT progs are attachable to another BPF prog"
        raise Refused(EINVAL, what)
    if extension or prog.expected_attach_type in TRAMPOLINES:
        _check_function(prog)
    elif prog.expected_attach_type not in (BPF_TRACE_RAW_TP, BPF_TRACE_ITER):
        raise Refused(EINVAL, "")


def _check_target_prog(prog: ProgFacts, target: TargetFacts) -> None:
    number = prog.attach_btf_id - 1
    extension = prog.prog_type == BPF_PROG_TYPE_EXT
    if not target.func_info:
        what = "FENTRY/FEXIT program can only be attached to another program annotated with BTF"
        raise Refused(EINVAL, what)
    if number not in range(target.functions):
        raise Refused(EINVAL, f"attach_btf_id {prog.attach_btf_id} is invalid")
    if extension and number in target.unreliable:
        raise Refused(EINVAL, "Cannot replace static functions")
    if target.prog_type == prog.prog_type:
        raise Refused(EINVAL, "Cannot recursively attach")
    watches = target.expected_attach_type in (BPF_TRACE_FENTRY, BPF_TRACE_FEXIT)
    if extension and target.prog_type == BPF_PROG_TYPE_TRACING and watches:
        raise Refused(EINVAL, "Cannot extend fentry/fexit")


def _check_function(prog: ProgFacts) -> None:
    target = prog.target
    if any(prog.saved_dst):
        if target is None or prog.saved_dst != (target.prog_type, target.expected_attach_type):
            raise Refused(EINVAL, "")
    name = prog.attach_to or f"function {prog.attach_btf_id} of the program"
    if prog.sleepable:
        if prog.prog_type == BPF_PROG_TYPE_LSM:
            may_sleep = name in SLEEPABLE_LSM_HOOKS
        else:
            may_sleep = name not in NON_SLEEPABLE_ERROR_INJECT and within_error_injection_list(name)
        if not may_sleep:
            raise Refused(EINVAL, f"{name} is not sleepable")
    elif prog.expected_attach_type == BPF_MODIFY_RETURN:
        if target is not None:
            raise Refused(EINVAL, "can't modify return codes of BPF programs")
        if not within_error_injection_list(name) and not name.startswith("security_"):
            raise Refused(EINVAL, f"{name}() is not modifiable")


# -- maps ----------------------------------------------------------------------------------------

_HASHES: Final = (BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_HASH_OF_MAPS)
_SLEEPABLE: Final = (BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY)
_SLEEPABLE_LATER: Final = (
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH_OF_MAPS,
)


def is_tracing_prog_type(prog_type: int) -> bool:
    """Does it run at probes, which can be anywhere?"""
    return prog_type == BPF_PROG_TYPE_RAW_TRACEPOINT


def check_map_prealloc(map: MapFacts) -> bool:
    return map.map_type not in _HASHES or not map.map_flags & BPF_F_NO_PREALLOC


def is_preallocated_map(map: MapFacts) -> bool:
    return check_map_prealloc(map) and (map.inner is None or check_map_prealloc(map.inner))


def check_map_prog_compatibility(prog: ProgFacts, map: MapFacts, *, map_in_map: bool) -> str:
    """May the program use the map?  Returns a warning, or nothing.

    map_in_map  whether sleepable programs may use per-CPU maps and maps of maps (v5.12)
    """
    tracing = is_tracing_prog_type(prog.prog_type)
    if tracing and map.spin_lock_off is not None:
        raise Refused(EINVAL, "tracing progs cannot use bpf_spin_lock yet")
    if prog.sleepable:
        if map.map_type not in _SLEEPABLE + (_SLEEPABLE_LATER if map_in_map else ()):
            raise Refused(EINVAL, "Sleepable programs can only use array and hash maps")
        if not is_preallocated_map(map):
            kinds = "maps" if map_in_map else "hash maps"
            raise Refused(EINVAL, f"Sleepable programs can only use preallocated {kinds}")
    if tracing and not is_preallocated_map(map):
        return (
            "trace type programs with run-time allocated hash maps are unsafe. "
            "Switch to preallocated hash maps."
        )
    return ""
