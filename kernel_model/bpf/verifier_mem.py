"""kernel/bpf/verifier.c, check_mem_access and below (v5.10): what a program may read and write

Not modelled: see `kernel_model.bpf.do_check`.
"""

from __future__ import annotations

from typing import Final

from kernel_model.bpf.attr import (
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_PERCPU_ARRAY,
)
from kernel_model.bpf.insn import MAX_BPF_STACK
from kernel_model.bpf.map import SIZEOF_BPF_SPIN_LOCK
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_SCHED_CLS
from kernel_model.bpf.verifier_state import (
    OPAQUE,
    SLOT,
    UNTRACKED,
    Env,
    Frame,
    Kind,
    MapFacts,
    Refused,
    Reg,
    State,
)
from kernel_model.linux.errno import EACCES

_ARRAYS: Final = (BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS)


def check_mem_access(
    env: Env, state: State, regno: int, off: int, size: int, stored: Reg | None
) -> Reg:
    """May `size` bytes at register + offset be read, or `stored` be written there?

    Returns what a read finds.
    """
    reg = state.frame.regs[regno]
    write = stored is not None
    if reg.kind in (Kind.NOT_INIT, Kind.SCALAR, Kind.MAP_VALUE_OR_NULL):
        raise Refused(EACCES, f"R{regno} invalid mem access '{reg.kind.value}'")
    if reg.off is None:
        if reg.kind is Kind.STACK and stored is not None:
            _forget_stack(state.frames[reg.frame])
        return UNTRACKED
    off += reg.off
    if reg.kind is Kind.STACK:
        return _stack(env, state, reg, off, size, stored)
    if reg.kind is Kind.MAP_VALUE:
        assert reg.map is not None
        check_map_access_type(reg.map, off, size, write=write)
        check_map_access(reg.map, regno, off, size)
    elif reg.kind is Kind.MAP_PTR:
        assert reg.map is not None
        _check_ptr_to_map_access(reg.map, regno, off, write=write)
    else:
        _check_ctx_access(env, regno, reg.off, off - reg.off, size, write=write)
    return OPAQUE if size == SLOT else UNTRACKED


def check_map_access_type(map: MapFacts, off: int, size: int, *, write: bool) -> None:
    verb, forbidden = (
        ("write into", BPF_F_RDONLY_PROG) if write else ("read from", BPF_F_WRONLY_PROG)
    )
    if map.map_flags & forbidden:
        what = f"value_size={map.value_size} off={off} size={size}"
        raise Refused(EACCES, f"{verb} map forbidden, {what}")


def check_map_access(map: MapFacts, regno: int, off: int, size: int) -> None:
    """Are the bytes inside the value, and not its lock?"""
    if off < 0 or off + size > map.value_size:
        what = f"value_size={map.value_size} off={off} size={size}"
        raise Refused(
            EACCES,
            f"invalid access to map value, {what}\n"
            f"R{regno} min value is outside of the allowed memory range",
        )
    at = map.spin_lock_off
    if at is not None and off < at + SIZEOF_BPF_SPIN_LOCK and at < off + size:
        raise Refused(EACCES, "bpf_spin_lock cannot be accessed directly by load/store")


def _check_ptr_to_map_access(map: MapFacts, regno: int, off: int, *, write: bool) -> None:
    name = "bpf_array" if map.map_type in _ARRAYS else "bpf_htab"
    if off < 0:
        raise Refused(EACCES, f"R{regno} is {name} invalid negative access: off={off}")
    if write:
        raise Refused(EACCES, f"only read from {name} is supported")


def check_ctx_reg(regno: int, off: int | None) -> None:
    """Is the pointer to the context that of the program's start?"""
    if off:
        message = f"dereference of modified ctx ptr R{regno} off={off} disallowed"
        raise Refused(EACCES, message)


def _check_ctx_access(
    env: Env, regno: int, modified: int, off: int, size: int, *, write: bool
) -> None:
    check_ctx_reg(regno, modified)
    if off < 0 or (write and env.prog.ops_type != BPF_PROG_TYPE_SCHED_CLS):
        raise Refused(EACCES, f"invalid bpf_context access off={off} size={size}")


# -- the stack -----------------------------------------------------------------------------------


def _bits(off: int, size: int) -> int:
    """The bits of `Frame.written` for the bytes from offset `off` < 0 on."""
    return ((1 << size) - 1) << (-off - size)


def _stack(env: Env, state: State, reg: Reg, off: int, size: int, stored: Reg | None) -> Reg:
    frame = state.frames[reg.frame]
    if off % size:
        base = off - (reg.off or 0)
        raise Refused(
            EACCES, f"misaligned stack access off (0x0; 0x0)+{reg.off}+{base} size {size}"
        )
    if not -MAX_BPF_STACK <= off < 0:
        raise Refused(EACCES, f"invalid stack off={off} size={size}")
    slot = -off - 1 >> 3
    if stored is not None:
        use_stack(env, frame, off)
        frame.written |= _bits(off, size)
        if size == SLOT:
            frame.spilled[slot] = stored
        else:
            frame.spilled.pop(slot, None)
        return stored
    for at in range(off, off + size):
        if not frame.written & _bits(at, 1):
            raise Refused(EACCES, f"invalid read from stack off {off}+{at - off} size {size}")
    found = frame.spilled.get(slot, UNTRACKED)
    if size == SLOT:
        return found
    if found.kind.is_pointer:
        raise Refused(EACCES, "invalid size of register fill")
    return UNTRACKED


def use_stack(env: Env, frame: Frame, off: int) -> None:
    """update_stack_depth()"""
    env.stack_depth[frame.start] = max(env.stack_depth.get(frame.start, 0), -off)


def _forget_stack(frame: Frame) -> None:
    """Something was written somewhere: what was spilled may be overwritten."""
    frame.spilled = dict.fromkeys(frame.spilled, UNTRACKED)


def check_helper_stack(
    env: Env, state: State, regno: int, reg: Reg, size: int, *, write: bool
) -> None:
    """check_stack_boundary(): may a helper read, or overwrite, what a stack pointer points to?"""
    frame, off = state.frames[reg.frame], reg.off
    if off is None:
        if write:
            _forget_stack(frame)
        return
    if off >= 0 or off < -MAX_BPF_STACK or off + size > 0 or size < 0:
        raise Refused(EACCES, f"invalid stack type R{regno} off={off} access_size={size}")
    use_stack(env, frame, off)
    if write:
        frame.written |= _bits(off, size)
        for at in range(off, off + size):
            frame.spilled.pop(-at - 1 >> 3, None)
        return
    for at in range(off, off + size):
        spilled = frame.spilled.get(-at - 1 >> 3, UNTRACKED)
        if not frame.written & _bits(at, 1) or spilled.kind.is_pointer:
            message = f"invalid indirect read from stack off {off}+{at - off} size {size}"
            raise Refused(EACCES, message)
