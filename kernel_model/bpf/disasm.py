"""kernel/bpf/disasm.c (v5.10): an instruction as the verifier log and bpftool print it

`print_bpf_insn` gives the text of one instruction and `listing` that of a program in bpftool's
layout. `kernel_model.bpf.asm` reads both back. Where the kernel prints a number that only the
running system can name (a map), a callback supplies the name.

The internal BPF_TAIL_CALL is shown as the helper call that it was, as `bpf_insn_prepare_dump`
(kernel/bpf/syscall.c) does before user space sees a program.

Not modelled: names of bpf2bpf functions (`call pc+3` it is); hiding addresses from users without
the capability to see them; the source lines that the kernel interleaves.
"""

from collections.abc import Callable, Sequence
from typing import Final

from kernel_model.bpf.helper_ids import BPF_FUNC, func_id_name
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU,
    BPF_ALU64,
    BPF_AND,
    BPF_ARSH,
    BPF_B,
    BPF_CALL,
    BPF_CLASS,
    BPF_DIV,
    BPF_DW,
    BPF_EMIT_CALL,
    BPF_END,
    BPF_EXIT,
    BPF_H,
    BPF_IND,
    BPF_JA,
    BPF_JEQ,
    BPF_JGE,
    BPF_JGT,
    BPF_JLE,
    BPF_JLT,
    BPF_JMP,
    BPF_JMP32,
    BPF_JNE,
    BPF_JSET,
    BPF_JSGE,
    BPF_JSGT,
    BPF_JSLE,
    BPF_JSLT,
    BPF_LD,
    BPF_LDX,
    BPF_LSH,
    BPF_MOD,
    BPF_MODE,
    BPF_MOV,
    BPF_MUL,
    BPF_NEG,
    BPF_OP,
    BPF_OR,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_VALUE,
    BPF_RSH,
    BPF_SIZE,
    BPF_SRC,
    BPF_ST,
    BPF_STX,
    BPF_SUB,
    BPF_TAIL_CALL,
    BPF_TO_BE,
    BPF_W,
    BPF_X,
    BPF_XADD,
    BPF_XOR,
    OPCODES,
    Insn,
    is_ld_imm64,
)

NameOfMap = Callable[[int], str]
"""From the number that stands for a map (its fd, or its id in a dump) to the text in `map[...]`."""

ALU_STRING: Final = {
    BPF_ADD: "+=",
    BPF_SUB: "-=",
    BPF_MUL: "*=",
    BPF_DIV: "/=",
    BPF_OR: "|=",
    BPF_AND: "&=",
    BPF_LSH: "<<=",
    BPF_RSH: ">>=",
    BPF_MOD: "%=",
    BPF_XOR: "^=",
    BPF_MOV: "=",
    BPF_ARSH: "s>>=",
}

LDST_STRING: Final = {BPF_W: "u32", BPF_H: "u16", BPF_B: "u8", BPF_DW: "u64"}

JMP_STRING: Final = {
    BPF_JEQ: "==",
    BPF_JGT: ">",
    BPF_JLT: "<",
    BPF_JGE: ">=",
    BPF_JLE: "<=",
    BPF_JSET: "&",
    BPF_JNE: "!=",
    BPF_JSGT: "s>",
    BPF_JSLT: "s<",
    BPF_JSGE: "s>=",
    BPF_JSLE: "s<=",
}


def fd_name(fd: int) -> str:
    """The default name of a map: `fd:5`."""
    return f"fd:{fd}"


def print_bpf_insn(insn: Insn, second: Insn | None = None, name_of_map: NameOfMap = fd_name) -> str:
    """One instruction, opcode first: `(07) r1 += 272`.

    `second` is the other half of a 64-bit constant and of no use for anything else. What is no
    instruction of v5.10 is printed as `BUG_` and its opcode.
    """
    if insn.code == BPF_JMP | BPF_TAIL_CALL:
        insn = BPF_EMIT_CALL(BPF_FUNC.tail_call)
    if insn.code not in OPCODES:
        return f"BUG_{insn.code:02x}"
    if not is_ld_imm64(insn):
        text = _PRINTERS[BPF_CLASS(insn.code)](insn)
    elif second is not None:
        text = _ld_imm64(insn, second, name_of_map)
    else:
        return f"BUG_{insn.code:02x}"
    return f"({insn.code:02x}) {text}"


def listing(program: Sequence[Insn], name_of_map: NameOfMap = fd_name) -> str:
    """The program in bpftool's layout, one line an instruction: `   0: (b4) w1 = 0`.

    The index counts 8-byte halves, so it skips one after a 64-bit constant.
    """
    lines: list[str] = []
    halves = iter(enumerate(program))
    for index, insn in halves:
        second = next(halves, (0, None))[1] if is_ld_imm64(insn) else None
        lines.append(f"{index:4}: {print_bpf_insn(insn, second, name_of_map)}\n")
    return "".join(lines)


def _ld_imm64(insn: Insn, second: Insn, name_of_map: NameOfMap) -> str:
    low, high = insn.imm & 0xFFFF_FFFF, second.imm & 0xFFFF_FFFF
    if insn.src == BPF_PSEUDO_MAP_FD:
        return f"r{insn.dst} = map[{name_of_map(low)}]"
    if insn.src == BPF_PSEUDO_MAP_VALUE:
        return f"r{insn.dst} = map[{name_of_map(low)}][0]+{high}"
    return f"r{insn.dst} = {high << 32 | low:#x}"


def _alu(insn: Insn) -> str:
    register = "w" if BPF_CLASS(insn.code) == BPF_ALU else "r"
    dst = f"{register}{insn.dst}"
    op = BPF_OP(insn.code)
    if op == BPF_NEG:
        return f"{dst} = -{dst}"
    if op == BPF_END:
        order = "be" if BPF_SRC(insn.code) == BPF_TO_BE else "le"
        return f"r{insn.dst} = {order}{insn.imm} r{insn.dst}"
    operand = f"{register}{insn.src}" if BPF_SRC(insn.code) == BPF_X else insn.imm
    return f"{dst} {ALU_STRING[op]} {operand}"


def _jmp(insn: Insn) -> str:
    op = BPF_OP(insn.code)
    if op == BPF_JA:
        return f"goto pc{insn.off:+d}"
    if op == BPF_CALL:
        return _call(insn)
    if op == BPF_EXIT:
        return "exit"
    register = "w" if BPF_CLASS(insn.code) == BPF_JMP32 else "r"
    with_register = BPF_SRC(insn.code) == BPF_X
    operand = f"{register}{insn.src}" if with_register else f"{insn.imm & 0xFFFF_FFFF:#x}"
    return f"if {register}{insn.dst} {JMP_STRING[op]} {operand} goto pc{insn.off:+d}"


def _call(insn: Insn) -> str:
    if insn.src == BPF_PSEUDO_CALL:
        return f"call pc{insn.imm:+d}"
    return f"call {func_id_name(insn.imm)}#{insn.imm}"


def _place(insn: Insn, base: int) -> str:
    return f"*({LDST_STRING[BPF_SIZE(insn.code)]} *)(r{base} {insn.off:+d})"


def _ld(insn: Insn) -> str:
    index = f"r{insn.src} + {insn.imm}" if BPF_MODE(insn.code) == BPF_IND else insn.imm
    return f"r0 = *({LDST_STRING[BPF_SIZE(insn.code)]} *)skb[{index}]"


def _ldx(insn: Insn) -> str:
    return f"r{insn.dst} = {_place(insn, insn.src)}"


def _st(insn: Insn) -> str:
    return f"{_place(insn, insn.dst)} = {insn.imm}"


def _stx(insn: Insn) -> str:
    if BPF_MODE(insn.code) == BPF_XADD:
        return f"lock {_place(insn, insn.dst)} += r{insn.src}"
    return f"{_place(insn, insn.dst)} = r{insn.src}"


_PRINTERS: Final[dict[int, Callable[[Insn], str]]] = {
    BPF_LD: _ld,
    BPF_LDX: _ldx,
    BPF_ST: _st,
    BPF_STX: _stx,
    BPF_ALU: _alu,
    BPF_ALU64: _alu,
    BPF_JMP: _jmp,
    BPF_JMP32: _jmp,
}
