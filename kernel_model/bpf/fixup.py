"""kernel/bpf/verifier.c, fixup_bpf_calls; kernel/bpf/core.c, bpf_patch_insn_single (v5.10)

What is left of a program to be rewritten once it is known to be safe: calls of map helpers become
the look-up itself, or the function of the map's type; divisions get a test of the divisor.

A call of a function of the kernel that is no helper has a number from `FIRST_KERNEL_CALL` on, where
the kernel has the distance of its address from __bpf_call_base.

Not modelled: rewriting of accesses to the context, removal of dead code, blinding of constants (a
loader with CAP_BPF is not blinded unless bpf_jit_harden is 2); that v5.10 shifts descriptors in
front of a patch, too (7506d211b932).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from kernel_model.bpf.arraymap import index_mask
from kernel_model.bpf.check import Subprog
from kernel_model.bpf.helper_ids import BPF_FUNC
from kernel_model.bpf.insn import (
    BPF_ALU,
    BPF_ALU32_IMM,
    BPF_ALU32_REG,
    BPF_ALU64,
    BPF_AND,
    BPF_CLASS,
    BPF_DIV,
    BPF_DW,
    BPF_EMIT_CALL,
    BPF_JEQ,
    BPF_JGE,
    BPF_JMP,
    BPF_JMP_A,
    BPF_JMP_IMM,
    BPF_JNE,
    BPF_LDX,
    BPF_MEM,
    BPF_MOD,
    BPF_MOV32_REG,
    BPF_OP,
    BPF_REG_3,
    BPF_TAIL_CALL,
    BPF_X,
    BPF_XOR,
    Insn,
)
from kernel_model.bpf.translate import is_bpf_call, is_jump, is_kernel_call
from kernel_model.bpf.verifier_state import Env, FunctionFacts, MapFacts, Refused
from kernel_model.linux.errno import EINVAL, ENOMEM, ENOSPC

FIRST_KERNEL_CALL: Final = 1000
MAX_POKES: Final = 1024  # direct tail calls of a program


class KernelCall(NamedTuple):
    """A function of the kernel that a rewritten program calls: the helper it stands for."""

    name: str
    helper: int


class PokeFacts(NamedTuple):
    """A direct tail call: where it is, and the slot, by index of the map and key."""

    insn_idx: int
    map_index: int
    key: int


class Rewritten(NamedTuple):
    """A program that was rewritten.

    calls   the functions that it calls from `FIRST_KERNEL_CALL` on
    derefs  the loads of pointers to inner maps, by index; they order what depends on them
    pokes   the direct tail calls: what the immediate of one counts, from 1 on
    """

    insns: tuple[Insn, ...]
    calls: tuple[KernelCall, ...]
    derefs: frozenset[int]
    pokes: tuple[PokeFacts, ...]
    functions: tuple[FunctionFacts, ...]


def patch_insns(insns: Sequence[Insn], patches: Mapping[int, Sequence[Insn]]) -> tuple[Insn, ...]:
    """The program with instructions replaced by sequences; jumps and calls keep their targets.

    Who jumps to a replaced instruction gets to the first of the sequence. The jumps of a sequence
    are relative to itself. Raises Refused if a jump becomes too long.
    """
    moved = _moved(insns, patches)
    patched: list[Insn] = []
    for index, insn in enumerate(insns):
        if index in patches:
            patched += patches[index]
        else:
            patched.append(_retarget(insn, index, moved))
    return tuple(patched)


def _moved(insns: Sequence[Insn], patches: Mapping[int, Sequence[Insn]]) -> Sequence[int]:
    """Where each instruction is in the patched program; what takes its place begins there."""
    lengths = [len(patches.get(index, (insn,))) for index, insn in enumerate(insns)]
    return [0, *accumulate(lengths)]


def _retarget(insn: Insn, index: int, moved: Sequence[int]) -> Insn:
    """The instruction at its new place, with the distance to its target adjusted."""
    is_call = is_bpf_call(insn)
    if not is_call and not is_jump(insn):
        return insn
    target = index + (insn.imm if is_call else insn.off) + 1
    distance = moved[target] - moved[index] - 1
    if is_call:
        return Insn(insn.code, insn.dst, insn.src, insn.off, distance)
    if not -(2**15) <= distance < 2**15:
        raise Refused(ENOMEM, f"insn {index} cannot be patched due to 16-bit range")
    return Insn(insn.code, insn.dst, insn.src, distance, insn.imm)


def fixup_bpf_calls(env: Env) -> Rewritten:
    """The program as it is to run."""
    patches: dict[int, Sequence[Insn]] = {}
    calls: dict[KernelCall, int] = {}
    outer_lookups: list[int] = []
    pokes: list[PokeFacts] = []
    for index, insn in enumerate(env.insns):
        map = env.map_of_call.get(index)
        if is_kernel_call(insn) and insn.imm == BPF_FUNC.tail_call:
            patches[index] = _tail_call(env, index, pokes)
        elif is_kernel_call(insn) and map is not None:
            patches[index] = _map_call(insn.imm, map, calls)
            if map.inner is not None:
                outer_lookups.append(index)
        elif insn.code in _DIVISIONS:
            patches[index] = _guarded_division(insn)
    moved = _moved(env.insns, patches)
    derefs = frozenset(
        moved[index] + at
        for index in outer_lookups
        for at, insn in enumerate(patches[index])
        if insn.code == BPF_LDX | BPF_MEM | BPF_DW
    )
    return Rewritten(
        patch_insns(env.insns, patches),
        tuple(calls),
        derefs,
        tuple(poke._replace(insn_idx=moved[poke.insn_idx]) for poke in pokes),
        tuple(_function(env, function, moved) for function in env.functions),
    )


def _tail_call(env: Env, index: int, pokes: list[PokeFacts]) -> Sequence[Insn]:
    """The internal instruction, with the number of a new descriptor if the slot is known.

    If the map's creator is not trusted, the index is masked, so that no CPU runs ahead beyond it.
    """
    site = env.tail_calls.get(index)
    indirect = Insn(BPF_JMP | BPF_TAIL_CALL)
    if site is not None and site.unpriv:
        if site.map is None:
            env.insn_idx = index
            raise Refused(EINVAL, "tail_call abusing map_ptr")
        return [
            BPF_JMP_IMM(BPF_JGE, BPF_REG_3, site.map.max_entries, 2),
            BPF_ALU32_IMM(BPF_AND, BPF_REG_3, index_mask(site.map.max_entries)),
            indirect,
        ]
    if site is None or site.map is None or site.key is None:
        return [indirect]
    if len(pokes) >= MAX_POKES:
        env.insn_idx = index
        raise Refused(ENOSPC, "adding tail call poke descriptor failed")
    pokes.append(PokeFacts(index, site.map.map_index, site.key))
    return [Insn(BPF_JMP | BPF_TAIL_CALL, imm=len(pokes))]


def _function(env: Env, function: Subprog, moved: Sequence[int]) -> FunctionFacts:
    named = {
        reg for insn in env.insns[function.start : function.end] for reg in (insn.dst, insn.src)
    }
    return FunctionFacts(
        moved[function.start],
        moved[function.end],
        env.stack_depth.get(function.start, 0),
        tuple(reg for reg in (6, 7, 8, 9) if reg in named),
        function.has_tail_call,
        function.start in env.reachable,
    )


def _map_call(helper: int, map: MapFacts, calls: dict[KernelCall, int]) -> Sequence[Insn]:
    """What takes the place of a call of a map helper."""
    if helper == BPF_FUNC.map_lookup_elem and isinstance(map.inlined, tuple):
        return map.inlined
    names: dict[int, str] = {
        BPF_FUNC.map_lookup_elem: map.lookup,
        BPF_FUNC.map_update_elem: map.update,
        BPF_FUNC.map_delete_elem: map.delete,
    }
    callee = KernelCall(names[helper], helper)
    return [BPF_EMIT_CALL(FIRST_KERNEL_CALL + calls.setdefault(callee, len(calls)))]


_DIVISIONS: Final = {
    kind | op | BPF_X for kind in (BPF_ALU, BPF_ALU64) for op in (BPF_DIV, BPF_MOD)
}


def _guarded_division(insn: Insn) -> Sequence[Insn]:
    """A division that a divisor of 0 skips; the quotient is then 0."""
    src, dst = insn.src, insn.dst
    low_half = [] if BPF_CLASS(insn.code) == BPF_ALU64 else [BPF_MOV32_REG(src, src)]
    if BPF_OP(insn.code) == BPF_MOD:
        return [*low_half, BPF_JMP_IMM(BPF_JEQ, src, 0, 1), insn]
    zero = BPF_ALU32_REG(BPF_XOR, dst, dst)
    return [*low_half, BPF_JMP_IMM(BPF_JNE, src, 0, 2), zero, BPF_JMP_A(1), insn]
