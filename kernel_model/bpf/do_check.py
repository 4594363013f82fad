"""kernel/bpf/verifier.c, do_check (v5.10): every path of a program, with what its registers hold

A light version of the kernel's walk, for programs that passed `kernel_model.bpf.check`. It knows
enough to say which map each call of a helper is about, and refuses what it is sure that the kernel
refuses, in the kernel's words. What it does not track it lets pass: the run then finds it out.

Paths are walked in the kernel's order (what follows a jump first, the jump's target later), so
that of several faults the kernel's first one is reported.

Not modelled: what `kernel_model.bpf.verifier_state` does not know, hence bounds of accesses at
variable offsets and paths that only ranges prove impossible; numbers that a loop changes, after
some turns; BTF: reading any field of a map is
allowed; programs without CAP_BPF; the contexts of the program types, of which any part may be
read, and of classifiers also written.
"""

from __future__ import annotations

from typing import Final, final

from kernel_model.bpf.alu import ALU, JMP, U32
from kernel_model.bpf.disasm import ALU_STRING
from kernel_model.bpf.helper_ids import BPF_FUNC
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU,
    BPF_ALU64,
    BPF_AND,
    BPF_CLASS,
    BPF_END,
    BPF_EXIT,
    BPF_JA,
    BPF_JEQ,
    BPF_JMP,
    BPF_JNE,
    BPF_K,
    BPF_LD,
    BPF_LDX,
    BPF_MODE,
    BPF_MOV,
    BPF_NEG,
    BPF_OP,
    BPF_OR,
    BPF_PSEUDO_MAP_FD,
    BPF_SIZE,
    BPF_SRC,
    BPF_ST,
    BPF_STX,
    BPF_SUB,
    BPF_X,
    BPF_XADD,
    BPF_XOR,
    MAX_BPF_STACK,
    Insn,
    signed,
)
from kernel_model.bpf.jit_run import MAX_CALL_FRAMES
from kernel_model.bpf.prog_attr import (
    BPF_COMPLEXITY_LIMIT_INSNS,
    BPF_MAX_VAR_OFF,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.bpf.translate import BYTES, is_bpf_call, is_jump, is_kernel_call
from kernel_model.bpf.verifier_call import check_helper_call
from kernel_model.bpf.verifier_mem import check_mem_access
from kernel_model.bpf.verifier_state import (
    NOT_INIT,
    OPAQUE,
    UNTRACKED,
    Env,
    Kind,
    Refused,
    Reg,
    State,
    check_reg_arg,
    constant,
)
from kernel_model.linux.errno import E2BIG, EACCES, EINVAL

MAX_TAIL_CALL_STACK: Final = 256  # bytes of the callers of a function with a tail call
WIDEN_AFTER: Final = 64  # states at one instruction, so that every loop comes to an end

_BITWISE: Final = (BPF_AND, BPF_OR, BPF_XOR)


def do_check(env: Env) -> None:
    """Walk all paths; raises Refused."""
    _Walk(env).run()
    _check_max_stack_depth(env, (0,), 0, seen=False)


@final
class _Walk:
    """The path being walked, and the places where others begin.

    branches  (instruction, state) of paths not walked yet
    """

    def __init__(self, env: Env) -> None:
        self.env: Final = env
        self.state = State([])
        self.state.call(0, -1, [Reg(Kind.CTX)])
        self.branches: list[tuple[int, State]] = []
        jumps = [(index, insn) for index, insn in enumerate(env.insns) if is_jump(insn)]
        self._seen: dict[int, set[object]] = {index + insn.off + 1: set() for index, insn in jumps}

    def run(self) -> None:
        env = self.env
        while True:
            env.insn_processed += 1
            if env.insn_processed > BPF_COMPLEXITY_LIMIT_INSNS:
                message = f"BPF program is too large. Processed {env.insn_processed} insn"
                raise Refused(E2BIG, message)
            if self._is_new() and self._step(env.insns[env.insn_idx]):
                continue
            if not self.branches:
                return
            env.insn_idx, self.state = self.branches.pop()

    def _is_new(self) -> bool:
        """is_state_visited(): only where paths can meet"""
        seen = self._seen.get(self.env.insn_idx)
        if seen is None:
            return True
        if len(seen) >= WIDEN_AFTER:
            self.state.widen()
        key = self.state.key()
        if key in seen:
            return False
        seen.add(key)
        return True

    def _step(self, insn: Insn) -> bool:
        """Do one instruction; whether the path goes on."""
        kind = BPF_CLASS(insn.code)
        regs = self.state.frame.regs
        if kind in (BPF_ALU, BPF_ALU64):
            self._alu(insn)
        elif kind == BPF_LDX:
            check_reg_arg(self.state, insn.src)
            regs[insn.dst] = self._access(insn, insn.src, None)
        elif kind in (BPF_ST, BPF_STX):
            self._store(insn)
        elif kind == BPF_LD:
            self._ld_imm64(insn)
            self.env.insn_idx += 1
        elif is_bpf_call(insn) or is_kernel_call(insn):
            return self._call(insn)
        elif insn.code == BPF_JMP | BPF_EXIT:
            return self._exit()
        elif insn.code == BPF_JMP | BPF_JA:
            self.env.insn_idx += insn.off
        else:
            self._conditional(insn)
        self.env.insn_idx += 1
        return True

    # -- memory ----------------------------------------------------------------------------

    def _access(self, insn: Insn, regno: int, stored: Reg | None) -> Reg:
        size = BYTES[BPF_SIZE(insn.code)]
        return check_mem_access(self.env, self.state, regno, insn.off, size, stored)

    def _store(self, insn: Insn) -> None:
        is_st = BPF_CLASS(insn.code) == BPF_ST
        is_xadd = not is_st and BPF_MODE(insn.code) == BPF_XADD
        value = check_reg_arg(self.state, insn.src) if not is_st else UNTRACKED
        if is_st and insn.imm == 0:
            value = constant(0)
        reg = check_reg_arg(self.state, insn.dst)
        if (is_st or is_xadd) and reg.kind is Kind.CTX:
            name = "BPF_ST" if is_st else "BPF_XADD"
            raise Refused(EACCES, f"{name} stores into R{insn.dst} ctx is not allowed")
        if is_xadd:
            size = BYTES[BPF_SIZE(insn.code)]
            if reg.kind is Kind.MAP_VALUE and ((reg.off or 0) + insn.off) % size:
                where = f"off (0x0; 0x0)+{reg.off}+{insn.off} size {size}"
                raise Refused(EACCES, f"misaligned value access {where}")
            self._access(insn, insn.dst, None)
            value = UNTRACKED
        self._access(insn, insn.dst, value)

    def _ld_imm64(self, insn: Insn) -> None:
        high = self.env.insns[self.env.insn_idx + 1].imm
        if not insn.src:
            loaded = constant(high << 32 | insn.imm & U32)
        else:
            map = self.env.maps[insn.imm]
            loaded = Reg(Kind.MAP_PTR, map=map)
            if insn.src != BPF_PSEUDO_MAP_FD:
                loaded = Reg(Kind.MAP_VALUE, off=high, map=map)
                if map.spin_lock_off is not None:
                    loaded = loaded._replace(id=self.state.new_id())
        self.state.frame.regs[insn.dst] = loaded

    # -- arithmetic ------------------------------------------------------------------------

    def _alu(self, insn: Insn) -> None:
        regs = self.state.frame.regs
        op = BPF_OP(insn.code)
        source = constant(insn.imm)
        if BPF_SRC(insn.code) == BPF_X and op != BPF_END:
            source = check_reg_arg(self.state, insn.src)
        if op == BPF_MOV:
            wide = BPF_CLASS(insn.code) == BPF_ALU64
            regs[insn.dst] = source if wide else _scalar(insn.code, source, source)
            return
        target = check_reg_arg(self.state, insn.dst)
        if op in (BPF_NEG, BPF_END):
            regs[insn.dst] = _scalar(insn.code, target, source)
        elif target.kind.is_pointer or source.kind.is_pointer:
            regs[insn.dst] = _pointer_arithmetic(insn, target, source)
        else:
            regs[insn.dst] = _scalar(insn.code, target, source)

    # -- control flow ----------------------------------------------------------------------

    def _call(self, insn: Insn) -> bool:
        state = self.state
        if state.lock and (is_bpf_call(insn) or insn.imm != BPF_FUNC.spin_unlock):
            raise Refused(EINVAL, "function calls are not allowed while holding a lock")
        if is_kernel_call(insn):
            check_helper_call(self.env, state, insn.imm, self.env.insn_idx)
            self.env.insn_idx += 1
            return True
        depth = len(state.frames)
        if depth >= MAX_CALL_FRAMES:
            raise Refused(E2BIG, f"the call stack of {depth + 1} frames is too deep")
        caller = state.frame
        state.call(self.env.insn_idx + insn.imm + 1, self.env.insn_idx, caller.regs[1:6])
        caller.regs[:6] = [NOT_INIT] * 6
        self.env.insn_idx = state.frame.start
        return True

    def _exit(self) -> bool:
        state = self.state
        if state.lock:
            raise Refused(EINVAL, "bpf_spin_unlock is missing")
        r0 = state.frame.regs[0]
        if len(state.frames) == 1:
            _check_return_code(self.env, check_reg_arg(state, 0))
            return False
        if r0.kind is Kind.STACK:
            raise Refused(EINVAL, "cannot return stack pointer to the caller")
        left = state.frames.pop()
        state.frame.regs[0] = r0
        self.env.insn_idx = left.callsite + 1
        return True

    def _conditional(self, insn: Insn) -> None:
        """check_cond_jmp_op(): go on here, and come back for the jump's target."""
        source = constant(insn.imm)
        if BPF_SRC(insn.code) == BPF_X:
            source = check_reg_arg(self.state, insn.src)
        target = check_reg_arg(self.state, insn.dst)
        taken = _is_branch_taken(insn, target, source)
        if taken is not None:
            self.env.insn_idx += insn.off if taken else 0
            return
        self.state.forget_opaque()
        other = self.state.copy()
        self.branches.append((self.env.insn_idx + insn.off + 1, other))
        equal, differs = (other, self.state)
        if BPF_OP(insn.code) == BPF_JNE:
            equal, differs = differs, equal
        elif BPF_OP(insn.code) != BPF_JEQ:
            return
        if BPF_CLASS(insn.code) != BPF_JMP or source.value is None:
            return
        if target.kind is Kind.SCALAR:
            equal.frame.regs[insn.dst] = source
        elif target.kind is Kind.MAP_VALUE_OR_NULL and BPF_SRC(insn.code) == BPF_K and not insn.imm:
            equal.replace(target.id, constant(0))
            differs.replace(target.id, _not_null(target))


def _not_null(reg: Reg) -> Reg:
    """mark_ptr_or_null_reg()"""
    map = reg.map
    assert map is not None
    if map.inner is not None:
        return Reg(Kind.MAP_PTR, map=map.inner)
    return Reg(Kind.MAP_VALUE, map=map, id=reg.id if map.spin_lock_off is not None else 0)


def _scalar(code: int, target: Reg, source: Reg) -> Reg:
    """What arithmetic makes of two scalars."""
    if target.value is None or source.value is None:
        return UNTRACKED
    return constant(ALU[code](target.value, source.value))


def _pointer_arithmetic(insn: Insn, target: Reg, source: Reg) -> Reg:
    """adjust_reg_min_max_vals(), if one of the registers is a pointer"""
    op, dst = BPF_OP(insn.code), insn.dst
    if target.kind.is_pointer and source.kind.is_pointer:
        if op == BPF_SUB:
            return OPAQUE
        raise Refused(EACCES, f"R{dst} pointer {ALU_STRING[op]} pointer prohibited")
    pointer, scalar = (target, source) if target.kind.is_pointer else (source, target)
    if BPF_CLASS(insn.code) != BPF_ALU64:
        if op == BPF_SUB:
            return OPAQUE
        raise Refused(EACCES, f"R{dst} 32-bit pointer arithmetic prohibited")
    if pointer.kind is Kind.MAP_VALUE_OR_NULL:
        what = f"on {pointer.kind.value} prohibited, null-check it first"
        raise Refused(EACCES, f"R{dst} pointer arithmetic {what}")
    if pointer.kind is Kind.MAP_PTR and not (op == BPF_ADD and scalar.value == 0):
        raise Refused(EACCES, f"R{dst} pointer arithmetic on map_ptr prohibited")
    _check_reg_sane_offset(pointer, scalar)
    if op == BPF_SUB and pointer is not target:
        raise Refused(EACCES, f"R{dst} tried to subtract pointer from scalar")
    if op == BPF_SUB and pointer.kind is Kind.STACK:
        raise Refused(EACCES, f"R{dst} subtraction from stack pointer prohibited")
    if op in _BITWISE:
        what = f"bitwise operator {ALU_STRING[op]} on pointer prohibited"
        raise Refused(EACCES, f"R{dst} {what}")
    if op not in (BPF_ADD, BPF_SUB):
        what = f"pointer arithmetic with {ALU_STRING[op]} operator prohibited"
        raise Refused(EACCES, f"R{dst} {what}")
    if pointer.off is None or scalar.value is None:
        return pointer._replace(off=None)
    delta = signed(scalar.value, 64)
    return pointer._replace(off=pointer.off + (delta if op == BPF_ADD else -delta))


def _check_reg_sane_offset(pointer: Reg, scalar: Reg) -> None:
    """May a pointer be moved that far?"""
    name = pointer.kind.value
    delta = None if scalar.value is None else signed(scalar.value, 64)
    if delta is not None and abs(delta) >= BPF_MAX_VAR_OFF:
        raise Refused(EINVAL, f"math between {name} pointer and {delta} is not allowed")
    if scalar.opaque:
        what = "register with unbounded min value is not allowed"
        raise Refused(EINVAL, f"math between {name} pointer and {what}")
    if pointer.off is not None and abs(pointer.off) >= BPF_MAX_VAR_OFF:
        raise Refused(EINVAL, f"{name} pointer offset {pointer.off} is not allowed")


def _is_branch_taken(insn: Insn, target: Reg, source: Reg) -> bool | None:
    """Whether a jump is taken, if that is certain."""
    if target.value is not None and source.value is not None:
        return JMP[insn.code](target.value, source.value)
    equality = insn.code in (BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JNE | BPF_K)
    if equality and source.is_null and target.kind is Kind.MAP_VALUE:
        return BPF_OP(insn.code) == BPF_JNE
    return None


def _check_return_code(env: Env, r0: Reg) -> None:
    """Programs that only watch a function have to return 0."""
    watches = env.prog.expected_attach_type in (BPF_TRACE_FENTRY, BPF_TRACE_FEXIT)
    if env.prog.prog_type != BPF_PROG_TYPE_TRACING or not watches:
        return
    if r0.kind is not Kind.SCALAR:
        message = f"At program exit the register R0 is not a known value ({r0.kind.value})"
        raise Refused(EINVAL, message)
    has = "has unknown scalar value" if r0.opaque else f"has value ({r0.value or 0:#x}; 0x0)"
    if r0.opaque or r0.value:
        raise Refused(
            EINVAL, f"At program exit the register R0 {has} should have been in (0x0; 0x0)"
        )


def _check_max_stack_depth(env: Env, chain: tuple[int, ...], depth: int, *, seen: bool) -> bool:
    """check_max_stack_depth(), of the last function of a chain of calls.

    chain  the functions that call each other, by their first instruction
    seen   whether a function with a tail call has been walked; as in the kernel that stays so,
           and whoever calls anything afterwards counts as one that can reach a tail call

    Returns what `seen` is now.
    """
    start = chain[-1]
    tail = next(f.has_tail_call for f in env.functions if f.start == start)
    if tail and start and depth >= MAX_TAIL_CALL_STACK:
        what = f"call stack of previous frames is {depth} bytes. Too large"
        raise Refused(EACCES, f"tail_calls are not allowed when {what}")
    seen |= tail
    if tail:
        env.reachable[start] = None
    depth += -(-max(env.stack_depth.get(start, 0), 1) // 32) * 32
    if depth > MAX_BPF_STACK:
        message = f"combined stack size of {len(chain)} calls is {depth}. Too large"
        raise Refused(EACCES, message)
    for callee in env.callees.get(start, ()):
        seen = _check_max_stack_depth(env, (*chain, callee), depth, seen=seen)
    if seen:
        env.reachable.update(dict.fromkeys(chain[:-1]))
    return seen
