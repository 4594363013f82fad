"""arch/x86/net/bpf_jit_comp.c (v5.10): machine code for single instructions

`emit_insn` gives what do_jit() emits for an instruction that does not jump, `emit_jcc` the
comparison before a conditional jump; the rest are the pieces that prologues, epilogues, calls and
tail calls are made of. Each machine instruction comes with its text, in AT&T syntax as objdump of
binutils 2.40 prints it.

Not modelled: loads that may fault (BPF_PROBE_MEM) and their exception tables; the tail call that
looks its target up at run time, with its retpoline; trampolines.
"""

from __future__ import annotations

from typing import Final

from kernel_model.bpf import insn as bpf
from kernel_model.bpf.insn import Insn, InsnError
from kernel_model.bpf.jit_emit_alu import (
    ADD,
    CMP,
    NAMES,
    RAX,
    RBP,
    RSP,
    Code,
    arith_imm,
    direct,
    emit_alu,
    imm_text,
    is_imm8,
    le,
    make,
    mov_imm64,
    pop_reg,
    push_reg,
    reg_text,
    rex,
    two_regs,
)

__all__ = [
    "REG2HEX",
    "Code",
    "add_eax_imm8",
    "add_rsp",
    "call_bytes",
    "cmp_eax_imm8",
    "emit_insn",
    "emit_jcc",
    "int3",
    "jcc_bytes",
    "jmp_bytes",
    "leave",
    "load_count",
    "mov_rax_rbp_disp",
    "mov_rbp_rsp",
    "nop2",
    "nop5",
    "pop",
    "push",
    "ret",
    "store_count",
    "sub_rsp",
    "xor_eax",
]

# Where r0 to r10 and the scratch register AX of a program live.
REG2HEX: Final = tuple(
    NAMES[64].index(name) for name in "rax rdi rsi rdx rcx r8 rbx r13 r14 r15 rbp r10".split()
)

_BITS = {bpf.BPF_B: 8, bpf.BPF_H: 16, bpf.BPF_W: 32, bpf.BPF_DW: 64}
_SUFFIX = {8: "b", 16: "w", 32: "l", 64: "q"}

_CONDITION = {
    bpf.BPF_JEQ: "je",
    bpf.BPF_JSET: "jne",
    bpf.BPF_JNE: "jne",
    bpf.BPF_JGT: "ja",
    bpf.BPF_JLT: "jb",
    bpf.BPF_JGE: "jae",
    bpf.BPF_JLE: "jbe",
    bpf.BPF_JSGT: "jg",
    bpf.BPF_JSLT: "jl",
    bpf.BPF_JSGE: "jge",
    bpf.BPF_JSLE: "jle",
}
_JCC: Final = {  # the short form; the other one has 0f before, and 10 more
    "jb": 0x72,
    "jae": 0x73,
    "je": 0x74,
    "jne": 0x75,
    "jbe": 0x76,
    "ja": 0x77,
    "jl": 0x7C,
    "jge": 0x7D,
    "jle": 0x7E,
    "jg": 0x7F,
}


def _disp(reg: int, rm: int, off: int, *, short: bool | None = None) -> bytes:
    """The operand `off(rm)`; a displacement is never left out, not even 0."""
    if is_imm8(off) if short is None else short:
        return bytes((0x40 | (reg & 7) << 3 | rm & 7,)) + le(off, 1)
    return bytes((0x80 | (reg & 7) << 3 | rm & 7,)) + le(off, 4)


def _mem(rm: int, off: int) -> str:
    return f"{off:#x}({reg_text(rm, 64)})"


def _load(bits: int, dst: int, src: int, off: int) -> Code:
    operand = _disp(dst, src, off)
    if bits < 32:
        data = rex(64, dst, src) + (b"\x0f\xb6" if bits == 8 else b"\x0f\xb7") + operand
        return make(data, f"movz{_SUFFIX[bits]}q", _mem(src, off), reg_text(dst, 64))
    data = rex(bits, dst, src) + b"\x8b" + operand
    return make(data, "mov", _mem(src, off), reg_text(dst, bits))


def _store(bits: int, dst: int, src: int, off: int) -> Code:
    opcode = b"\x88" if bits == 8 else b"\x89"
    data = rex(bits, src, dst) + opcode + _disp(src, dst, off)
    return make(data, "mov", reg_text(src, bits), _mem(dst, off))


def _store_imm(bits: int, dst: int, off: int, imm: int) -> Code:
    opcode = b"\xc6" if bits == 8 else b"\xc7"
    data = rex(bits, 0, dst) + opcode + _disp(0, dst, off) + le(imm, min(bits, 32) // 8)
    return make(data, f"mov{_SUFFIX[bits]}", imm_text(imm, bits), _mem(dst, off))


def _xadd(bits: int, dst: int, src: int, off: int) -> Code:
    data = b"\xf0" + rex(bits, src, dst) + b"\x01" + _disp(src, dst, off)
    return make(data, "lock add", reg_text(src, bits), _mem(dst, off))


def _registers(insn: Insn) -> tuple[int, int]:
    if max(insn.dst, insn.src) >= len(REG2HEX):
        raise InsnError(f"r{max(insn.dst, insn.src)} is no register of a program")
    return REG2HEX[insn.dst], REG2HEX[insn.src]


def emit_insn(insn: Insn, following: Insn | None, imm64: int | None) -> list[Code]:
    """What an instruction that does not jump becomes; a copy of a register to itself is nothing.

    imm64  the constant that a 64-bit load has in the end; None: the one in `insn` and `following`

    Packet loads raise `InsnError` too: the verifier has replaced them.
    """
    code = insn.code
    kind = bpf.BPF_CLASS(code)
    if code not in bpf.OPCODES or kind in (bpf.BPF_JMP, bpf.BPF_JMP32):
        raise InsnError(f"bpf_jit: unknown opcode {code:02x}")
    dst, src = _registers(insn)
    if kind in (bpf.BPF_ALU, bpf.BPF_ALU64):
        return emit_alu(insn, dst, src)
    bits = _BITS[bpf.BPF_SIZE(code)]
    if kind == bpf.BPF_LDX:
        return [_load(bits, dst, src, insn.off)]
    if kind == bpf.BPF_ST:
        return [_store_imm(bits, dst, insn.off, insn.imm)]
    if kind == bpf.BPF_STX:
        store = _xadd if bpf.BPF_MODE(code) == bpf.BPF_XADD else _store
        return [store(bits, dst, src, insn.off)]
    if not bpf.is_ld_imm64(insn):
        raise InsnError(f"bpf_jit: unknown opcode {code:02x}")
    if imm64 is None:
        if following is None:
            raise InsnError("a 64-bit constant without its second half")
        imm64 = following.imm << 32 | insn.imm & 0xFFFF_FFFF
    return [mov_imm64(dst, imm64)]


def emit_jcc(insn: Insn) -> tuple[list[Code], str]:
    """What a conditional jump compares, and the mnemonic of the jump to put behind."""
    kind, op = bpf.BPF_CLASS(insn.code), bpf.BPF_OP(insn.code)
    jumps = insn.code in bpf.OPCODES and kind in (bpf.BPF_JMP, bpf.BPF_JMP32)
    if not jumps or op not in _CONDITION:
        raise InsnError(f"opcode {insn.code:02x} is no conditional jump")
    bits = 64 if kind == bpf.BPF_JMP else 32
    dst, src = _registers(insn)
    by_register = bpf.BPF_SRC(insn.code) == bpf.BPF_X
    if op == bpf.BPF_JSET and not by_register:
        data = direct(0xF7, bits, 0, dst) + le(insn.imm, 4)
        compare = make(data, "test", imm_text(insn.imm, bits), reg_text(dst, bits))
    elif op == bpf.BPF_JSET:
        compare = two_regs("test", 0x85, bits, dst, src)
    elif by_register:
        compare = two_regs("cmp", 0x39, bits, dst, src)
    elif insn.imm == 0:
        compare = two_regs("test", 0x85, bits, dst, dst)
    else:
        compare = arith_imm(CMP, bits, dst, insn.imm)
    return [compare], _CONDITION[op]


def jcc_bytes(mnemonic: str, rel: int, target: int) -> Code:
    """A conditional jump `rel` bytes from its end, to the address `target`."""
    opcode = _JCC[mnemonic]
    if is_imm8(rel):
        data = bytes((opcode,)) + le(rel, 1)
    else:
        data = bytes((0x0F, opcode + 0x10)) + le(_rel32(rel), 4)
    return make(data, mnemonic, _address(target))


def jmp_bytes(rel: int, target: int, *, near: bool = False) -> Code:
    """A jump; `near`: of 5 bytes whatever the distance, as where text is patched."""
    if is_imm8(rel) and not near:
        return make(b"\xeb" + le(rel, 1), "jmp", _address(target))
    return make(b"\xe9" + le(_rel32(rel), 4), "jmp", _address(target))


def call_bytes(rel: int, target: int) -> Code:
    return make(b"\xe8" + le(_rel32(rel), 4), "call", _address(target))


def push(reg: str) -> Code:
    return push_reg(NAMES[64].index(reg))


def pop(reg: str) -> Code:
    return pop_reg(NAMES[64].index(reg))


def mov_rbp_rsp() -> Code:
    """Let the frame begin here: rbp becomes rsp."""
    return two_regs("mov", 0x89, 64, RBP, RSP)


def sub_rsp(n: int) -> Code:
    return _rsp(5, "sub", n)


def add_rsp(n: int) -> Code:
    return _rsp(0, "add", n)


def leave() -> Code:
    return make(b"\xc9", "leave")


def ret() -> Code:
    return make(b"\xc3", "ret")


def xor_eax() -> Code:
    """Begin to count tail calls."""
    return two_regs("xor", 0x31, 32, RAX, RAX)


def nop2() -> Code:
    """What stands in the place of `xor_eax` where no tail call is reachable."""
    return make(b"\x66\x90", "xchg", "%ax", "%ax")


def nop5() -> Code:
    """What stands where text is to be patched."""
    return make(b"\x0f\x1f\x44\x00\x00", "nopl", "0x0(%rax,%rax,1)")


def int3() -> Code:
    return make(b"\xcc", "int3")


def load_count(off: int) -> Code:
    """Load the count of tail calls from the frame into eax."""
    data = b"\x8b" + _disp(RAX, RBP, off, short=False)
    return make(data, "mov", _mem(RBP, off), "%eax")


def store_count(off: int) -> Code:
    data = b"\x89" + _disp(RAX, RBP, off, short=False)
    return make(data, "mov", "%eax", _mem(RBP, off))


def mov_rax_rbp_disp(off: int) -> Code:
    """Load the count of tail calls for a function that is about to be called."""
    data = b"\x48\x8b" + _disp(RAX, RBP, off, short=False)
    return make(data, "mov", _mem(RBP, off), "%rax")


def cmp_eax_imm8(n: int) -> Code:
    return arith_imm(CMP, 32, RAX, _checked_imm8(n))


def add_eax_imm8(n: int) -> Code:
    return arith_imm(ADD, 32, RAX, _checked_imm8(n))


def _checked_imm8(n: int) -> int:
    if not is_imm8(n):
        raise InsnError(f"{n} does not fit in 8 bits")
    return n


def _rel32(rel: int) -> int:
    if not -(1 << 31) <= rel < 1 << 31:
        raise InsnError(f"a jump over {rel} bytes is out of range")
    return rel


def _address(target: int) -> str:
    return f"{target & (1 << 64) - 1:#x}"


def _rsp(operation: int, mnemonic: str, n: int) -> Code:
    """Move the stack pointer, with a constant of 32 bits however small it is."""
    data = direct(0x81, 64, operation, RSP) + le(n, 4)
    return make(data, mnemonic, imm_text(n, 64), "%rsp")
