"""Machine code: objdump must read every emitted instruction as the text that comes with it."""

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from kernel_model.bpf import insn as bpf
from kernel_model.bpf import jit_emit as jit
from kernel_model.bpf.insn import Insn, InsnError
from kernel_model.bpf.jit_emit import Code

BASE = 0xFFFF_FFFF_A000_0000
REGISTERS = range(12)
IMMEDIATES = (0, 1, 2, -1, 127, 128, -128, -129, 255, 256, 0x12345678, 2**31 - 1, -(2**31))
OFFSETS = (0, 1, 8, -8, 127, 128, -128, -129, -512, 2**15 - 1, -(2**15))
CONSTANTS = (0, 1, -1, 2**31, 2**32 - 1, 2**32, -(2**31), 0xFFFF_8880_0100_0000, 2**63)

PACKET = {mode | size for mode in (bpf.BPF_ABS, bpf.BPF_IND) for size in (0, 8, 16)}
JUMPS = {c for c in bpf.OPCODES if bpf.BPF_CLASS(c) in (bpf.BPF_JMP, bpf.BPF_JMP32)}
NO_CONDITION = {bpf.BPF_JMP | op for op in (bpf.BPF_JA, bpf.BPF_CALL, bpf.BPF_EXIT)}
PLAIN = sorted(bpf.OPCODES - JUMPS - PACKET)
CONDITIONAL = sorted(JUMPS - NO_CONDITION)


def normalise(text: str) -> str:
    """Text as binutils 2.40 has it; others differ in suffixes, and in shifts by one."""
    text = " ".join(text.split())
    text = re.sub(r"^(jmp|call|ret|leave)q\b", r"\1", text)
    return re.sub(r"^(sh[lr]|sar) \$(?:0x)?1,", r"\1 ", text)


def disassemble(data: bytes, directory: Path) -> list[tuple[bytes, str]]:
    """What objdump makes of it."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.fail("objdump is missing: it is in binutils, which gcc needs too")
    image = directory / "image"
    image.write_bytes(data)
    command = [objdump, "-D", "-b", "binary", "-m", "i386:x86-64", "--insn-width=16"]
    command += [f"--adjust-vma={BASE:#x}", str(image)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split("\t") for line in listing.splitlines() if line.count("\t") == 2]
    return [(bytes.fromhex(hexes), normalise(text)) for _, hexes, text in lines]


def check(codes: Iterable[Code], directory: Path) -> None:
    codes = list(codes)
    assert codes
    found = disassemble(b"".join(code.data for code in codes), directory)
    for code, there in zip(codes, found, strict=False):
        assert (code.data.hex(" "), normalise(code.text)) == (there[0].hex(" "), there[1])
    assert len(codes) == len(found)


def texts(insn: Insn, imm64: int | None = None) -> list[str]:
    return [code.text for code in jit.emit_insn(insn, None, imm64)]


def variants(code: int) -> Iterator[Insn]:
    """The instruction with all the registers, and with each immediate and offset that matters."""
    kind, op = bpf.BPF_CLASS(code), bpf.BPF_OP(code)
    arithmetic = kind in (bpf.BPF_ALU, bpf.BPF_ALU64)
    memory = kind in (bpf.BPF_LDX, bpf.BPF_ST, bpf.BPF_STX)
    immediates: tuple[int, ...] = IMMEDIATES
    if arithmetic and op == bpf.BPF_END:
        immediates = (16, 32, 64)
    elif arithmetic and op in (bpf.BPF_LSH, bpf.BPF_RSH, bpf.BPF_ARSH):
        immediates = (0, 1, 2, 31, 63)
    by_register = kind in (bpf.BPF_LDX, bpf.BPF_STX)
    if arithmetic or kind in (bpf.BPF_JMP, bpf.BPF_JMP32):
        by_register = bpf.BPF_SRC(code) == bpf.BPF_X
        if arithmetic and op == bpf.BPF_END:
            by_register = False
    for dst, src, imm, off in itertools.product(
        REGISTERS,
        REGISTERS if by_register else (0,),
        (0,) if by_register else immediates,
        OFFSETS if memory else (0,),
    ):
        yield Insn(code, dst, src, off, imm)


def test_every_opcode_is_covered() -> None:
    assert len(PLAIN) + len(CONDITIONAL) + len(PACKET) + len(NO_CONDITION) == len(bpf.OPCODES)


@pytest.mark.parametrize("code", PLAIN, ids="{:02x}".format)
def test_objdump_reads_instruction(code: int, tmp_path: Path) -> None:
    if code == bpf.BPF_LD | bpf.BPF_IMM | bpf.BPF_DW:
        cases = [(Insn(code, dst), value) for dst in REGISTERS for value in CONSTANTS]
        check([c for insn, value in cases for c in jit.emit_insn(insn, None, value)], tmp_path)
    else:
        check([c for insn in variants(code) for c in jit.emit_insn(insn, None, None)], tmp_path)


@pytest.mark.parametrize("code", CONDITIONAL, ids="{:02x}".format)
def test_objdump_reads_comparison(code: int, tmp_path: Path) -> None:
    check([c for insn in variants(code) for c in jit.emit_jcc(insn)[0]], tmp_path)


@pytest.mark.parametrize("rel", [0, 5, -2, 127, 128, -128, -129, 2**31 - 1, -(2**31)])
def test_objdump_reads_jumps(rel: int, tmp_path: Path) -> None:
    short = -128 <= rel <= 127
    at, codes = BASE, []

    def put(code: Code, size: int, target: int) -> None:
        nonlocal at
        at += size
        assert len(code.data) == size
        assert target == at + rel
        codes.append(code)

    for mnemonic in "jb jae je jne jbe ja jl jge jle jg".split():
        size = 2 if short else 6
        put(jit.jcc_bytes(mnemonic, rel, at + size + rel), size, at + size + rel)
    size = 2 if short else 5
    put(jit.jmp_bytes(rel, at + size + rel), size, at + size + rel)
    put(jit.jmp_bytes(rel, at + 5 + rel, near=True), 5, at + 5 + rel)
    put(jit.call_bytes(rel, at + 5 + rel), 5, at + 5 + rel)
    check(codes, tmp_path)


def test_objdump_reads_the_rest(tmp_path: Path) -> None:
    fixed = [jit.mov_rbp_rsp(), jit.leave(), jit.ret(), jit.xor_eax(), jit.int3()]
    fixed += [jit.nop2(), jit.nop5()]
    names = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
    fixed += [piece(name) for name in names for piece in (jit.push, jit.pop)]
    fixed += [piece(n) for n in (8, 512) for piece in (jit.sub_rsp, jit.add_rsp)]
    counters = (jit.load_count, jit.store_count, jit.mov_rax_rbp_disp)
    fixed += [piece(off) for off in (-4, -516, 0) for piece in counters]
    fixed += [piece(n) for n in (1, 32, -1) for piece in (jit.cmp_eax_imm8, jit.add_eax_imm8)]
    check(fixed, tmp_path)


@pytest.mark.parametrize(
    ("code", "hexes", "text"),
    [
        (jit.push("rbp"), "55", "push   %rbp"),
        (jit.push("r13"), "41 55", "push   %r13"),
        (jit.pop("rbx"), "5b", "pop    %rbx"),
        (jit.mov_rbp_rsp(), "48 89 e5", "mov    %rsp,%rbp"),
        (jit.sub_rsp(8), "48 81 ec 08 00 00 00", "sub    $0x8,%rsp"),
        (jit.add_rsp(8), "48 81 c4 08 00 00 00", "add    $0x8,%rsp"),
        (jit.leave(), "c9", "leave"),
        (jit.ret(), "c3", "ret"),
        (jit.int3(), "cc", "int3"),
        (jit.xor_eax(), "31 c0", "xor    %eax,%eax"),
        (jit.nop2(), "66 90", "xchg   %ax,%ax"),
        (jit.nop5(), "0f 1f 44 00 00", "nopl   0x0(%rax,%rax,1)"),
        (jit.load_count(-4), "8b 85 fc ff ff ff", "mov    -0x4(%rbp),%eax"),
        (jit.store_count(-4), "89 85 fc ff ff ff", "mov    %eax,-0x4(%rbp)"),
        (jit.mov_rax_rbp_disp(-8), "48 8b 85 f8 ff ff ff", "mov    -0x8(%rbp),%rax"),
        (jit.cmp_eax_imm8(32), "83 f8 20", "cmp    $0x20,%eax"),
        (jit.add_eax_imm8(1), "83 c0 01", "add    $0x1,%eax"),
        (jit.jmp_bytes(-2, BASE), "eb fe", "jmp    0xffffffffa0000000"),
        (jit.jmp_bytes(8, BASE, near=True), "e9 08 00 00 00", "jmp    0xffffffffa0000000"),
        (jit.jcc_bytes("ja", 300, BASE), "0f 87 2c 01 00 00", "ja     0xffffffffa0000000"),
        (jit.call_bytes(-5, BASE), "e8 fb ff ff ff", "call   0xffffffffa0000000"),
    ],
    ids=lambda value: value.text if isinstance(value, Code) else "",
)
def test_pieces(code: Code, hexes: str, text: str) -> None:
    assert (code.data.hex(" "), code.text) == (hexes, text)


# The pieces around a division, and around others that need registers of their own.
MOD = (
    "push   %rax|push   %rdx|{}|xor    %edx,%edx|div    {}|mov    %rdx,%r11|pop    %rdx|pop    %rax"
)


@pytest.mark.parametrize(
    ("insn", "expected"),
    [
        (bpf.BPF_MOV64_REG(6, 1), "mov    %rdi,%rbx"),
        (bpf.BPF_MOV64_REG(6, 6), ""),
        (bpf.BPF_MOV32_REG(6, 6), "mov    %ebx,%ebx"),
        (bpf.BPF_MOV64_IMM(0, 0), "xor    %eax,%eax"),
        (bpf.BPF_MOV64_IMM(7, -1), "mov    $0xffffffffffffffff,%r13"),
        (bpf.BPF_MOV32_IMM(7, -1), "mov    $0xffffffff,%r13d"),
        (bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 0, 128), "add    $0x80,%rax"),
        (bpf.BPF_ALU32_REG(bpf.BPF_XOR, 5, 1), "xor    %edi,%r8d"),
        (bpf.BPF_ALU64_IMM(bpf.BPF_NEG, 9, 0), "neg    %r15"),
        (
            bpf.BPF_ALU64_REG(bpf.BPF_MOD, 1, 2),
            MOD.format("mov    %rsi,%r11|mov    %rdi,%rax", "%r11") + "|mov    %r11,%rdi",
        ),
        (
            bpf.BPF_ALU32_IMM(bpf.BPF_MOD, 0, -3),
            MOD.format("mov    $0xfffffffffffffffd,%r11", "%r11d") + "|mov    %r11,%rax",
        ),
        (
            bpf.BPF_ALU64_REG(bpf.BPF_DIV, 3, 0),
            "push   %rax|push   %rdx|mov    %rax,%r11|mov    %rdx,%rax|xor    %edx,%edx|"
            "div    %r11|mov    %rax,%r11|pop    %rdx|pop    %rax|mov    %r11,%rdx",
        ),
        (
            bpf.BPF_ALU64_REG(bpf.BPF_MUL, 1, 2),
            "push   %rax|push   %rdx|mov    %rdi,%r11|mov    %rsi,%rax|mul    %r11|"
            "pop    %rdx|mov    %rax,%rdi|pop    %rax",
        ),
        (
            bpf.BPF_ALU32_IMM(bpf.BPF_MUL, 3, 5),
            "push   %rax|mov    %rdx,%r11|mov    $0x5,%eax|mul    %r11d|mov    %rax,%rdx|"
            "pop    %rax",
        ),
        (
            bpf.BPF_ALU64_REG(bpf.BPF_MUL, 0, 0),
            "push   %rdx|mov    %rax,%r11|mul    %r11|pop    %rdx",
        ),
        (bpf.BPF_ALU64_IMM(bpf.BPF_RSH, 1, 32), "shr    $0x20,%rdi"),
        (bpf.BPF_ALU32_REG(bpf.BPF_LSH, 1, 4), "shl    %cl,%edi"),
        (
            bpf.BPF_ALU64_REG(bpf.BPF_ARSH, 1, 2),
            "push   %rcx|mov    %rsi,%rcx|sar    %cl,%rdi|pop    %rcx",
        ),
        (
            bpf.BPF_ALU64_REG(bpf.BPF_LSH, 4, 2),
            "mov    %rcx,%r11|push   %rcx|mov    %rsi,%rcx|shl    %cl,%r11|pop    %rcx|"
            "mov    %r11,%rcx",
        ),
        (
            bpf.BPF_ALU32_REG(bpf.BPF_RSH, 4, 4),
            "mov    %rcx,%r11|shr    %cl,%r11d|mov    %r11,%rcx",
        ),
        (bpf.BPF_ENDIAN(bpf.BPF_TO_BE, 2, 16), "ror    $0x8,%si|movzwl %si,%esi"),
        (bpf.BPF_ENDIAN(bpf.BPF_TO_BE, 8, 64), "bswap  %r14"),
        (bpf.BPF_ENDIAN(bpf.BPF_TO_LE, 8, 16), "movzwl %r14w,%r14d"),
        (bpf.BPF_ENDIAN(bpf.BPF_TO_LE, 8, 32), "mov    %r14d,%r14d"),
        (bpf.BPF_ENDIAN(bpf.BPF_TO_LE, 8, 64), ""),
        (bpf.BPF_LDX_MEM(bpf.BPF_B, 0, 1, 0), "movzbq 0x0(%rdi),%rax"),
        (bpf.BPF_LDX_MEM(bpf.BPF_H, 0, 10, -8), "movzwq -0x8(%rbp),%rax"),
        (bpf.BPF_LDX_MEM(bpf.BPF_W, 3, 7, 4), "mov    0x4(%r13),%edx"),
        (bpf.BPF_STX_MEM(bpf.BPF_B, 10, 2, -1), "mov    %sil,-0x1(%rbp)"),
        (bpf.BPF_STX_MEM(bpf.BPF_DW, 10, 11, -512), "mov    %r10,-0x200(%rbp)"),
        (bpf.BPF_ST_MEM(bpf.BPF_B, 0, 0, 0x1FF), "movb   $0xff,0x0(%rax)"),
        (bpf.BPF_ST_MEM(bpf.BPF_DW, 10, -8, -2), "movq   $0xfffffffffffffffe,-0x8(%rbp)"),
        (bpf.BPF_STX_XADD(bpf.BPF_W, 0, 1, 4), "lock add %edi,0x4(%rax)"),
        (bpf.BPF_STX_XADD(bpf.BPF_DW, 9, 1, 4), "lock add %rdi,0x4(%r15)"),
    ],
)
def test_emitted_text(insn: Insn, expected: str) -> None:
    assert "|".join(texts(insn)) == expected


@pytest.mark.parametrize(
    ("insn", "hexes"),
    [
        (bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 1, 4), "48 83 c7 04"),
        (bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 0, 300), "48 05 2c 01 00 00"),
        (bpf.BPF_ALU64_IMM(bpf.BPF_ADD, 1, 300), "48 81 c7 2c 01 00 00"),
        (bpf.BPF_ALU64_IMM(bpf.BPF_LSH, 1, 1), "48 d1 e7"),
        (bpf.BPF_LDX_MEM(bpf.BPF_B, 0, 1, 0), "48 0f b6 47 00"),
        (bpf.BPF_STX_MEM(bpf.BPF_H, 9, 0, 128), "66 41 89 87 80 00 00 00"),
        (bpf.BPF_STX_MEM(bpf.BPF_B, 0, 6, 0), "88 58 00"),
        (bpf.BPF_STX_MEM(bpf.BPF_B, 0, 1, 0), "40 88 78 00"),
        (bpf.BPF_ST_MEM(bpf.BPF_H, 10, -2, 7), "66 c7 45 fe 07 00"),
    ],
)
def test_the_form_is_the_one_the_kernel_chooses(insn: Insn, hexes: str) -> None:
    assert b"".join(code.data for code in jit.emit_insn(insn, None, None)).hex(" ") == hexes


@pytest.mark.parametrize(
    ("insn", "text", "hexes", "mnemonic"),
    [
        (bpf.BPF_JMP_IMM(bpf.BPF_JEQ, 0, 0, 1), "test   %rax,%rax", "48 85 c0", "je"),
        (bpf.BPF_JMP32_IMM(bpf.BPF_JNE, 7, 0, 1), "test   %r13d,%r13d", "45 85 ed", "jne"),
        (bpf.BPF_JMP_IMM(bpf.BPF_JGT, 1, 5, 1), "cmp    $0x5,%rdi", "48 83 ff 05", "ja"),
        (
            bpf.BPF_JMP32_IMM(bpf.BPF_JLT, 0, 300, 1),
            "cmp    $0x12c,%eax",
            "81 f8 2c 01 00 00",
            "jb",
        ),
        (bpf.BPF_JMP_REG(bpf.BPF_JGE, 1, 2, 1), "cmp    %rsi,%rdi", "48 39 f7", "jae"),
        (bpf.BPF_JMP_REG(bpf.BPF_JLE, 1, 2, 1), "cmp    %rsi,%rdi", "48 39 f7", "jbe"),
        (bpf.BPF_JMP_REG(bpf.BPF_JSGT, 1, 2, 1), "cmp    %rsi,%rdi", "48 39 f7", "jg"),
        (bpf.BPF_JMP_REG(bpf.BPF_JSGE, 1, 2, 1), "cmp    %rsi,%rdi", "48 39 f7", "jge"),
        (bpf.BPF_JMP_REG(bpf.BPF_JSLT, 1, 2, 1), "cmp    %rsi,%rdi", "48 39 f7", "jl"),
        (bpf.BPF_JMP_REG(bpf.BPF_JSLE, 1, 2, 1), "cmp    %rsi,%rdi", "48 39 f7", "jle"),
        (bpf.BPF_JMP_REG(bpf.BPF_JSET, 1, 2, 1), "test   %rsi,%rdi", "48 85 f7", "jne"),
        (bpf.BPF_JMP32_IMM(bpf.BPF_JSET, 1, 0, 1), "test   $0x0,%edi", "f7 c7 00 00 00 00", "jne"),
    ],
)
def test_comparison(insn: Insn, text: str, hexes: str, mnemonic: str) -> None:
    (compare,), jump = jit.emit_jcc(insn)
    assert (compare.text, compare.data.hex(" "), jump) == (text, hexes, mnemonic)


def test_constant_of_two_instructions() -> None:
    for value in CONSTANTS:
        first, second = bpf.BPF_LD_IMM64(8, value)
        assert jit.emit_insn(first, second, None) == jit.emit_insn(first, None, value)
    first = Insn(bpf.BPF_LD | bpf.BPF_IMM | bpf.BPF_DW, 8)
    assert texts(first, 0xFFFF_8880_0100_0000) == ["movabs $0xffff888001000000,%r14"]
    assert texts(first, 2**32 - 1) == ["mov    $0xffffffff,%r14d"]
    with pytest.raises(InsnError, match="second half"):
        jit.emit_insn(first, None, None)


@pytest.mark.parametrize("code", sorted({0xFF, 0x8D} | PACKET | JUMPS), ids="{:02x}".format)
def test_what_is_no_plain_instruction_is_refused(code: int) -> None:
    with pytest.raises(InsnError, match=f"unknown opcode {code:02x}"):
        jit.emit_insn(Insn(code), None, None)


@pytest.mark.parametrize("code", sorted({0xFF, 0xB7} | NO_CONDITION), ids="{:02x}".format)
def test_what_is_no_conditional_jump_is_refused(code: int) -> None:
    with pytest.raises(InsnError, match="no conditional jump"):
        jit.emit_jcc(Insn(code))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InsnError, match="r12"):
        jit.emit_insn(bpf.BPF_MOV64_REG(12, 0), None, None)
    with pytest.raises(InsnError, match="r13"):
        jit.emit_jcc(bpf.BPF_JMP_REG(bpf.BPF_JEQ, 0, 13, 0))
    with pytest.raises(InsnError, match="out of range"):
        jit.call_bytes(2**31, 0)
    with pytest.raises(InsnError, match="8 bits"):
        jit.cmp_eax_imm8(128)
