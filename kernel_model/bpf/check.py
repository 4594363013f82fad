"""kernel/bpf/verifier.c (v5.10): the checks of a program's structure, before any value is tracked

`check_program` answers as BPF_PROG_LOAD would, with an errno and the verifier's message. It runs
the kernel's passes in the kernel's order: functions and jumps (`check_subprogs`), functions that
return in an unusual way and that BTF does not describe (`check_abnormal_return`), 64-bit constants
and opcodes (`resolve_pseudo_ldimm64`), reachability and loops (`check_cfg`), and then what
`do_check` demands of the fields of each instruction.

`do_check` walks the paths of a program; here the instructions are taken in the order of their
index. So of two faults another one may be reported first, and a fault in code that the kernel
proves dead by tracking values is reported although the kernel would never look at it.

Not modelled: registers that are read before they are written, types and ranges of values, memory
bounds, stack depth and call depth, reference and lock tracking; arguments of helpers; whether the
program type permits LD_ABS and LD_IND; BTF itself; looking up the maps and BTF ids of 64-bit
constants; program size limits (kernel/bpf/syscall.c).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from errno import E2BIG, EACCES, EINVAL, EPERM
from itertools import pairwise
from typing import Final

from kernel_model.bpf.helper_ids import BPF_FUNC, BPF_FUNC_MAX_ID, func_id_name
from kernel_model.bpf.insn import (
    BPF_ABS,
    BPF_ALU,
    BPF_ALU64,
    BPF_ARSH,
    BPF_CALL,
    BPF_CLASS,
    BPF_DIV,
    BPF_END,
    BPF_EXIT,
    BPF_IND,
    BPF_JA,
    BPF_JMP,
    BPF_JMP32,
    BPF_LD,
    BPF_LDX,
    BPF_LSH,
    BPF_MEM,
    BPF_MOD,
    BPF_MODE,
    BPF_MOV,
    BPF_NEG,
    BPF_OP,
    BPF_PSEUDO_BTF_ID,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_VALUE,
    BPF_REG_FP,
    BPF_RSH,
    BPF_SRC,
    BPF_ST,
    BPF_STX,
    BPF_X,
    BPF_XADD,
    MAX_BPF_REG,
    OPCODES,
    Insn,
    is_ld_imm64,
)

BPF_MAX_SUBPROGS = 256

Program = Sequence[Insn]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a program is refused."""

    errno: int  # positive: EINVAL, not -EINVAL
    insn: int  # index of the offending instruction
    message: str  # the line of the verifier log


@dataclass(frozen=True, slots=True)
class Subprog:
    """One function of a program: the instructions `start` to `end - 1`."""

    start: int
    end: int
    has_tail_call: bool
    has_ld_abs: bool


def check_program(
    insns: Program,
    known_helpers: Collection[int],
    *,
    bpf_capable: bool = True,
    func_info: bool = True,
) -> Rejection | None:
    """The first fault in the structure of a program, or None.

    `known_helpers` are the numbers that programs of this type may call; `bpf_capable` says whether
    the loader has CAP_BPF, without which there are neither functions nor loops; `func_info`
    whether BTF describes the functions.
    """
    return (
        _check_subprogs(insns, bpf_capable=bpf_capable)
        or (None if func_info else _check_abnormal_return(insns))
        or _check_opcodes(insns)
        or _check_cfg(insns, loops=bpf_capable)
        or _check_fields(insns, known_helpers)
    )


def subprogs(insns: Program) -> tuple[Subprog, ...]:
    """The functions of a program that passed `check_program`, the entry function first."""
    starts = sorted({0} | {_callee(index, insn) for index, insn in _bpf_calls(insns)})
    return tuple(
        Subprog(
            start,
            end,
            has_tail_call=any(map(_is_tail_call, insns[start:end])),
            has_ld_abs=any(map(_is_ld_abs, insns[start:end])),
        )
        for start, end in pairwise([*starts, len(insns)])
    )


def _is_tail_call(insn: Insn) -> bool:
    to_helper = insn.code == BPF_JMP | BPF_CALL and insn.src != BPF_PSEUDO_CALL
    return to_helper and insn.imm == BPF_FUNC.tail_call


def _is_ld_abs(insn: Insn) -> bool:
    return BPF_CLASS(insn.code) == BPF_LD and BPF_MODE(insn.code) in (BPF_ABS, BPF_IND)


def _bpf_calls(insns: Program) -> Iterator[tuple[int, Insn]]:
    """The calls of functions of the program itself."""
    for index, insn in enumerate(insns):
        if insn.code == BPF_JMP | BPF_CALL and insn.src == BPF_PSEUDO_CALL:
            yield index, insn


def _callee(index: int, call: Insn) -> int:
    return index + call.imm + 1


def _jumps(insns: Program) -> Iterator[tuple[int, int]]:
    """Every jump, conditional or not, as (from, to)."""
    for index, insn in enumerate(insns):
        if BPF_CLASS(insn.code) in (BPF_JMP, BPF_JMP32):
            if BPF_OP(insn.code) not in (BPF_CALL, BPF_EXIT):
                yield index, index + insn.off + 1


# check_subprogs


def _check_subprogs(insns: Program, *, bpf_capable: bool) -> Rejection | None:
    """Functions begin inside the program, jumps stay in theirs, and none runs on into the next."""
    if not insns:
        return Rejection(EINVAL, 0, "call to invalid destination")
    starts = {0}
    for index, call in _bpf_calls(insns):
        if not bpf_capable:
            message = (
                "function calls to other bpf functions are allowed for CAP_BPF and CAP_SYS_ADMIN"
            )
            return Rejection(EPERM, index, message)
        if not 0 <= _callee(index, call) < len(insns):
            return Rejection(EINVAL, index, "call to invalid destination")
        starts.add(_callee(index, call))
        if len(starts) > BPF_MAX_SUBPROGS:
            return Rejection(E2BIG, index, "too many subprograms")
    targets = dict(_jumps(insns))
    for start, end in pairwise([*sorted(starts), len(insns)]):
        for index in range(start, end):
            if index in targets and not start <= targets[index] < end:
                message = f"jump out of range from insn {index} to {targets[index]}"
                return Rejection(EINVAL, index, message)
        if insns[end - 1].code not in (BPF_JMP | BPF_EXIT, BPF_JMP | BPF_JA):
            return Rejection(EINVAL, end - 1, "last insn is not an exit or jmp")
    return None


def _check_abnormal_return(insns: Program) -> Rejection | None:
    """Without BTF nobody knows what a function returns that may return from within."""
    for function in subprogs(insns)[1:]:
        for what, has in (("LD_ABS", function.has_ld_abs), ("tail_call", function.has_tail_call)):
            if has:
                message = f"{what} is not allowed in subprogs without BTF"
                return Rejection(EINVAL, function.start, message)
    return None


# resolve_pseudo_ldimm64


def _check_opcodes(insns: Program) -> Rejection | None:
    """Every opcode exists, and every 64-bit constant has two halves."""
    halves = iter(enumerate(insns))
    for index, insn in halves:
        message = None
        if is_ld_imm64(insn):
            _, second = next(halves, (0, None))
            message = _ld_imm64_fault(insn, second)
        elif BPF_CLASS(insn.code) == BPF_LDX and (BPF_MODE(insn.code) != BPF_MEM or insn.imm):
            message = "BPF_LDX uses reserved fields"
        elif BPF_CLASS(insn.code) == BPF_STX and (
            BPF_MODE(insn.code) not in (BPF_MEM, BPF_XADD) or insn.imm
        ):
            message = "BPF_STX uses reserved fields"
        elif insn.code not in OPCODES:
            message = f"unknown opcode {insn.code:02x}"
        if message:
            return Rejection(EINVAL, index, message)
    return None


def _ld_imm64_fault(insn: Insn, second: Insn | None) -> str | None:
    if second is None or second != Insn(0, imm=second.imm):
        return "invalid bpf_ld_imm64 insn"
    if insn.src not in (0, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE, BPF_PSEUDO_BTF_ID):
        return "unrecognized bpf_ld_imm64 insn"
    if insn.src == BPF_PSEUDO_MAP_FD and second.imm:
        return "unrecognized bpf_ld_imm64 insn"
    if insn.src == BPF_PSEUDO_BTF_ID and second.imm:
        return "reserved field (insn[1].imm) is used in pseudo_btf_id ldimm64 insn."
    return None


# check_cfg


def _check_cfg(insns: Program, *, loops: bool) -> Rejection | None:
    """Everything is reached, and only jumps go back, and those only where `loops` are allowed.

    This is a depth-first walk; "back" means to an instruction that the walk has not left yet.
    """
    on_path = {0}
    explored: set[int] = set()
    stack = [(0, _edges(insns, 0))]
    while stack:
        here, edges = stack[-1]
        for there, may_loop in edges:
            if there in on_path and not (may_loop and loops):
                return Rejection(EINVAL, here, f"back-edge from insn {here} to {there}")
            if there not in on_path and there not in explored:
                on_path.add(there)
                stack.append((there, _edges(insns, there)))
                break
        else:
            stack.pop()
            on_path.remove(here)
            explored.add(here)
    unreachable = next((index for index in range(len(insns)) if index not in explored), None)
    if unreachable is None:
        return None
    return Rejection(EINVAL, unreachable, f"unreachable insn {unreachable}")


def _edges(insns: Program, index: int) -> Iterator[tuple[int, bool]]:
    """Where an instruction leads, in the order of the walk, and whether that edge may close a loop.

    Falling through may not, calling may not: that would be a recursion.
    """
    insn = insns[index]
    is_jump = BPF_CLASS(insn.code) in (BPF_JMP, BPF_JMP32)
    op = BPF_OP(insn.code)
    if not is_jump:
        yield index + 1, False
    elif op == BPF_CALL:
        yield index + 1, False
        if insn.src == BPF_PSEUDO_CALL:
            yield _callee(index, insn), False
    elif op != BPF_EXIT:
        if op != BPF_JA:
            yield index + 1, True
        yield index + insn.off + 1, True


# do_check

_Fault = tuple[int, str] | None  # errno and message


def _check_fields(insns: Program, known_helpers: Collection[int]) -> Rejection | None:
    """The fields of every instruction, and that nothing jumps into the middle of a constant."""
    targets = {to for _, to in _jumps(insns)}
    targets |= {_callee(index, call) for index, call in _bpf_calls(insns)}
    is_second_half = False
    for index, insn in enumerate(insns):
        fault: _Fault = None
        if is_second_half:
            is_second_half = False
            if index in targets:
                fault = EINVAL, "invalid BPF_LD_IMM insn"
        else:
            is_second_half = is_ld_imm64(insn)
            fault = _fault(insn, known_helpers)
        if fault:
            return Rejection(fault[0], index, fault[1])
    return None


def _fault(insn: Insn, known_helpers: Collection[int]) -> _Fault:
    if insn.code == BPF_JMP | BPF_CALL:
        return _call(insn, known_helpers)
    return _CHECKS[BPF_CLASS(insn.code)](insn)


def _clean(name: str, *reserved: int) -> _Fault:
    return (EINVAL, f"{name} uses reserved fields") if any(reserved) else None


def _reads(reg: int) -> _Fault:
    return (EINVAL, f"R{reg} is invalid") if reg >= MAX_BPF_REG else None


def _writes(reg: int) -> _Fault:
    return _reads(reg) or ((EACCES, "frame pointer is read only") if reg == BPF_REG_FP else None)


def _alu(insn: Insn) -> _Fault:
    op = BPF_OP(insn.code)
    if op == BPF_NEG:
        return _clean("BPF_NEG", insn.src, insn.off, insn.imm) or _writes(insn.dst)
    if op == BPF_END:
        bad_width = insn.imm not in (16, 32, 64)
        return _clean("BPF_END", insn.src, insn.off, bad_width) or _writes(insn.dst)
    name = "BPF_MOV" if op == BPF_MOV else "BPF_ALU"
    if BPF_SRC(insn.code) == BPF_X:
        return _clean(name, insn.imm, insn.off) or _reads(insn.src) or _writes(insn.dst)
    fault = _clean(name, insn.src, insn.off) or _reads(insn.dst)
    return fault or _constant(insn) or _writes(insn.dst)


def _constant(insn: Insn) -> _Fault:
    """Constants that an operation cannot take."""
    op = BPF_OP(insn.code)
    if op in (BPF_DIV, BPF_MOD) and insn.imm == 0:
        return EINVAL, "div by zero"
    width = 64 if BPF_CLASS(insn.code) == BPF_ALU64 else 32
    if op in (BPF_LSH, BPF_RSH, BPF_ARSH) and not 0 <= insn.imm < width:
        return EINVAL, f"invalid shift {insn.imm}"
    return None


def _ld(insn: Insn) -> _Fault:
    if is_ld_imm64(insn):
        return _clean("BPF_LD_IMM64", insn.off) or _writes(insn.dst)
    unused = insn.src if BPF_MODE(insn.code) == BPF_ABS else 0
    return _clean("BPF_LD_[ABS|IND]", insn.dst, insn.off, unused) or _reads(insn.src)


def _ldx(insn: Insn) -> _Fault:
    return _reads(insn.src) or _writes(insn.dst)


def _st(insn: Insn) -> _Fault:
    return _clean("BPF_ST", insn.src) or _reads(insn.dst)


def _stx(insn: Insn) -> _Fault:
    return _reads(insn.src) or _reads(insn.dst)


def _jmp(insn: Insn) -> _Fault:
    op = BPF_OP(insn.code)
    if insn.code in (BPF_JMP | BPF_JA, BPF_JMP | BPF_EXIT):
        return _clean("BPF_JA" if op == BPF_JA else "BPF_EXIT", insn.imm, insn.src, insn.dst)
    unused = insn.imm if BPF_SRC(insn.code) == BPF_X else insn.src
    return _clean("BPF_JMP/JMP32", unused) or _reads(insn.src) or _reads(insn.dst)


def _call(insn: Insn, known_helpers: Collection[int]) -> _Fault:
    bad_kind = insn.src not in (0, BPF_PSEUDO_CALL)
    if fault := _clean("BPF_CALL", insn.off, bad_kind, insn.dst):
        return fault
    if insn.src == BPF_PSEUDO_CALL:
        return None
    if not 0 <= insn.imm < BPF_FUNC_MAX_ID:
        return EINVAL, f"invalid func {func_id_name(insn.imm)}#{insn.imm}"
    if insn.imm not in known_helpers:
        return EINVAL, f"unknown func {func_id_name(insn.imm)}#{insn.imm}"
    return None


_CHECKS: Final[Mapping[int, Callable[[Insn], _Fault]]] = {
    BPF_LD: _ld,
    BPF_LDX: _ldx,
    BPF_ST: _st,
    BPF_STX: _stx,
    BPF_ALU: _alu,
    BPF_ALU64: _alu,
    BPF_JMP: _jmp,
    BPF_JMP32: _jmp,
}
