"""kernel/bpf/verifier.c, check_helper_call (v5.10): what a program passes to helpers

Not modelled: see `kernel_model.bpf.do_check`; names of maps.
"""

from __future__ import annotations

from typing import Final

from kernel_model.bpf.arraymap import index_mask
from kernel_model.bpf.attr import (
    BPF_F_RDONLY_PROG,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PERF_EVENT_ARRAY,
    BPF_MAP_TYPE_PROG_ARRAY,
)
from kernel_model.bpf.helper_ids import BPF_FUNC, func_id_name
from kernel_model.bpf.helpers import HELPERS, Arg, Ret
from kernel_model.bpf.verifier_mem import (
    check_ctx_reg,
    check_helper_stack,
    check_map_access,
    check_map_access_type,
)
from kernel_model.bpf.verifier_state import (
    NOT_INIT,
    OPAQUE,
    Env,
    Kind,
    MapFacts,
    Refused,
    Reg,
    State,
    TailCallSite,
    check_reg_arg,
)
from kernel_model.linux.errno import EACCES, EINVAL

BPF_MAX_VAR_SIZ: Final = 1 << 29

_MAP_CALLS: Final = (
    BPF_FUNC.map_lookup_elem,
    BPF_FUNC.map_update_elem,
    BPF_FUNC.map_delete_elem,
)

_MEMORY: Final = "fp, pkt, pkt_meta, map_value"
_EXPECTED: Final = {
    Arg.CONST_MAP_PTR: ((Kind.MAP_PTR,), "map_ptr"),
    Arg.MAP_KEY: ((Kind.STACK, Kind.MAP_VALUE), _MEMORY),
    Arg.MAP_VALUE: ((Kind.STACK, Kind.MAP_VALUE), _MEMORY),
    Arg.UNINIT_MEM: ((Kind.STACK, Kind.MAP_VALUE), f"{_MEMORY}, mem, rdonly_buf, rdwr_buf"),
    Arg.CONST_SIZE_OR_ZERO: ((Kind.SCALAR,), "inv"),
    Arg.SPIN_LOCK: ((Kind.MAP_VALUE,), "map_value"),
}


def check_helper_call(env: Env, state: State, func_id: int, insn_idx: int) -> None:
    """Check the arguments, remember the map, and put what the helper returns into r0."""
    proto = HELPERS[func_id]
    regs = state.frame.regs
    map: MapFacts | None = None
    for regno, arg in enumerate(proto.args, start=1):
        reg = check_reg_arg(state, regno)
        if arg is Arg.ANYTHING:
            continue
        if arg is Arg.CTX:
            if reg.kind is not Kind.CTX:
                raise Refused(EACCES, f"R{regno} type={reg.kind.value} expected=ctx")
            check_ctx_reg(regno, reg.off)
            continue
        _check_reg_type(regno, reg, arg)
        if arg is Arg.CONST_MAP_PTR:
            map = reg.map
        elif arg is Arg.SPIN_LOCK:
            _process_spin_lock(state, reg, is_lock=func_id == BPF_FUNC.spin_lock)
        elif arg is Arg.CONST_SIZE_OR_ZERO:
            _check_size(regno, reg)
            _check_memory(env, state, regno - 1, reg.value, write=True)
        elif map is not None:
            size = map.key_size if arg is Arg.MAP_KEY else map.value_size
            _check_memory(env, state, regno, size, write=False)
    if map is not None and func_id == BPF_FUNC.tail_call:
        _record_func_key(env, map, regs[3], insn_idx)
    if map is not None and func_id in _MAP_CALLS:
        _record_func_map(env, map, func_id, insn_idx)
    regs[:6] = [_returned(state, proto.ret, map), *[NOT_INIT] * 5]
    if map is not None:
        _check_map_func_compatibility(env, map, func_id)


def _check_reg_type(regno: int, reg: Reg, arg: Arg) -> None:
    kinds, expected = _EXPECTED[arg]
    if reg.kind not in kinds:
        raise Refused(EACCES, f"R{regno} type={reg.kind.value} expected={expected}")


def _check_size(regno: int, reg: Reg) -> None:
    if reg.opaque or (reg.value or 0) >= 1 << 63:
        hint = "either use unsigned or 'var &= const'"
        raise Refused(EACCES, f"R{regno} min value is negative, {hint}")
    if (reg.value or 0) >= BPF_MAX_VAR_SIZ:
        hint = "use 'var &= const' or 'if (var < const)'"
        raise Refused(EACCES, f"R{regno} unbounded memory access, {hint}")


def _check_memory(env: Env, state: State, regno: int, size: int | None, *, write: bool) -> None:
    """check_helper_mem_access(), if the size is known."""
    reg = state.frame.regs[regno]
    if size is None:
        return
    if reg.kind is Kind.STACK:
        check_helper_stack(env, state, regno, reg, size, write=write)
    elif reg.off is not None:
        assert reg.map is not None
        check_map_access_type(reg.map, reg.off, size, write=write)
        check_map_access(reg.map, regno, reg.off, size)


def _check_map_func_compatibility(env: Env, map: MapFacts, func_id: int) -> None:
    only_lookup = map.map_type in (BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS)
    nothing = map.map_type == BPF_MAP_TYPE_PERF_EVENT_ARRAY
    if (map.map_type == BPF_MAP_TYPE_PROG_ARRAY) != (func_id == BPF_FUNC.tail_call):
        nothing = True
    if nothing or (only_lookup and func_id != BPF_FUNC.map_lookup_elem):
        name = f"{func_id_name(func_id)}#{func_id}"
        raise Refused(EINVAL, f"cannot pass map_type {map.map_type} into func {name}")
    several = len(env.functions) > 1 and not env.prog.tail_call_subprogs
    if func_id == BPF_FUNC.tail_call and several:
        message = "tail_calls are not allowed in programs with bpf-to-bpf calls"
        raise Refused(EINVAL, message)


def _process_spin_lock(state: State, reg: Reg, *, is_lock: bool) -> None:
    map = reg.map
    assert map is not None
    if reg.off is None:
        return
    if map.spin_lock_off is None:
        raise Refused(EACCES, "map has to have BTF in order to use bpf_spin_lock")
    if map.spin_lock_off != reg.off:
        raise Refused(EACCES, f"off {reg.off} doesn't point to 'struct bpf_spin_lock'")
    if is_lock:
        if state.lock:
            raise Refused(EACCES, "Locking two bpf_spin_locks are not allowed")
        state.lock = reg.id
    else:
        if not state.lock:
            raise Refused(EACCES, "bpf_spin_unlock without taking a lock")
        if state.lock != reg.id:
            raise Refused(EACCES, "bpf_spin_unlock of different lock")
        state.lock = 0


def _record_func_map(env: Env, map: MapFacts, func_id: int, insn_idx: int) -> None:
    if map.map_flags & BPF_F_RDONLY_PROG and func_id != BPF_FUNC.map_lookup_elem:
        raise Refused(EACCES, "write into map forbidden")
    if env.map_of_call.setdefault(insn_idx, map) != map:
        env.map_of_call[insn_idx] = None


def _record_func_key(env: Env, map: MapFacts, key: Reg, insn_idx: int) -> None:
    """Remember what slot a tail call is about, unless that differs from path to path."""
    if map.map_type != BPF_MAP_TYPE_PROG_ARRAY:
        raise Refused(EINVAL, "kernel subsystem misconfigured verifier")
    limit = map.max_entries if env.prog.exact_key else index_mask(map.max_entries) + 1
    known = key.kind is Kind.SCALAR and key.value is not None and key.value < limit
    now = TailCallSite(map, key.value if known else None, map.unpriv)
    before = env.tail_calls.get(insn_idx, now)
    env.tail_calls[insn_idx] = TailCallSite(
        map if before.map == map else None,
        now.key if before.key == now.key else None,
        before.unpriv or now.unpriv,
    )


def _returned(state: State, ret: Ret, map: MapFacts | None) -> Reg:
    if ret is Ret.VOID:
        return NOT_INIT
    if ret is Ret.INTEGER:
        return OPAQUE
    return Reg(Kind.MAP_VALUE_OR_NULL, map=map, id=state.new_id())
