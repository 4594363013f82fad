"""Running bytecode: every opcode against the table, memory, calls, and wrong programs."""

import itertools
import struct

import pytest

from kernel_model.bpf import alu
from kernel_model.bpf.asm import assemble
from kernel_model.bpf.core import BpfCall, BpfRun, bpf_prog_run
from kernel_model.bpf.insn import (
    BPF_ALU,
    BPF_DW,
    BPF_END,
    BPF_EXIT_INSN,
    BPF_JMP_A,
    BPF_LD_ABS,
    BPF_LD_IMM64,
    BPF_LDX_MEM,
    BPF_MOV64_IMM,
    BPF_NEG,
    BPF_OP,
    BPF_STX_MEM,
    BPF_TO_BE,
    BPF_W,
    OPCODES,
    Insn,
)
from kernel_model.bpf.translate import translate
from sim.cells import Cell, Struct, cell
from sim.macros import note
from tests.kernel_model.bpf.running import Once, error, program, run_code

VALUES = (0, 1, 2, 31, 33, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 63, (1 << 64) - 1)
IMMEDIATES = (1, 3, 31, -1, -(2**31), 2**31 - 1)


def immediates(code: int) -> tuple[int, ...]:
    if code & 0xF7 == BPF_ALU | BPF_END:
        return (16, 32, 64)
    if BPF_OP(code) == BPF_NEG and code & 7 in (4, 7):
        return (0,)
    return IMMEDIATES


def outcomes(insn: Insn) -> list[tuple[int, int]]:
    """What the instruction leaves in r6 and r7, for all pairs of VALUES."""
    conditional = insn.code in alu.JMP
    code = (
        BPF_LDX_MEM(BPF_DW, 6, 1, 0),
        BPF_LDX_MEM(BPF_DW, 7, 1, 8),
        insn,
        *([BPF_JMP_A(1), BPF_MOV64_IMM(6, 4242)] if conditional else []),
        BPF_STX_MEM(BPF_DW, 1, 6, 0),
        BPF_STX_MEM(BPF_DW, 1, 7, 8),
        BPF_MOV64_IMM(0, 0),
        BPF_EXIT_INSN(),
    )
    once = Once()
    prog = program(once.memory, code)

    async def task() -> list[tuple[int, int]]:
        left: list[tuple[int, int]] = []
        for a, b in itertools.product(VALUES, VALUES):
            ctx = bytearray(struct.pack("<QQ", a, b))
            await bpf_prog_run(once.kernel, prog, ctx)
            left.append(struct.unpack("<QQ", ctx))
        return left

    return once.run(task)


@pytest.mark.parametrize("code", sorted(alu.ALU), ids=hex)
def test_arithmetic_is_that_of_the_table(code: int) -> None:
    for imm in immediates(code) if code & 8 == 0 or code == BPF_ALU | BPF_END | BPF_TO_BE else (0,):
        insn = Insn(code, 6, 0 if imm else 7, 0, imm)
        expected = []
        for a, b in itertools.product(VALUES, VALUES):
            regs = [0, 0, 0, 0, 0, 0, a, b, 0, 0, 0]
            alu.step(insn, regs)
            expected.append((regs[6], regs[7]))

        assert outcomes(insn) == expected


@pytest.mark.parametrize("code", sorted(alu.JMP), ids=hex)
def test_conditional_jump_is_that_of_the_table(code: int) -> None:
    for imm in IMMEDIATES if code & 8 == 0 else (0,):
        insn = Insn(code, 6, 0 if imm else 7, 1, imm)
        expected = []
        for a, b in itertools.product(VALUES, VALUES):
            taken = alu.taken(insn, [0, 0, 0, 0, 0, 0, a, b, 0, 0, 0])
            expected.append((4242 if taken else a, b))

        assert outcomes(insn) == expected


def test_constants_of_64_bits() -> None:
    code = "r1 = 0x123456789abcdef0 ll\nr1 >>= 32\nr0 = r1\nexit"

    assert run_code(code) == 0x12345678


@pytest.mark.parametrize("size", ["u8", "u16", "u32", "u64"])
def test_stack_through_the_frame_pointer_and_through_a_copy(size: str) -> None:
    code = f"""
        r1 = -2
        *({size} *)(r10 -8) = r1
        r2 = r10
        r2 += -16
        r3 = *({size} *)(r2 +8)
        *({size} *)(r2 +0) = r3
        *({size} *)(r2 +0) = 7
        r0 = *({size} *)(r10 -16)
        r3 >>= 1
        r0 += r3
        exit
    """
    bits = int(size[1:])

    assert run_code(code) == (7 + ((1 << bits) - 2 >> 1)) & 0xFFFF_FFFF


def test_xadd_on_the_stack() -> None:
    code = """
        *(u64 *)(r10 -8) = -1
        r1 = 2
        lock *(u32 *)(r10 -8) += r1
        r0 = *(u64 *)(r10 -8)
        exit
    """

    assert run_code(code) == 1


def test_context_is_read_and_written_in_place() -> None:
    ctx = bytearray(b"\1\0\0\0\2\0\0\0")

    assert run_code("r0 = *(u32 *)(r1 +4)\n*(u8 *)(r1 +0) = 9\nexit", ctx) == 2
    assert ctx[0] == 9


def test_result_is_a_u32() -> None:
    assert run_code("r0 = -1\nexit") == 0xFFFF_FFFF


def test_loop_and_jump_over_a_loop() -> None:
    code = """
        r0 = 0
        r1 = 10
        if r1 == 0 goto out
        again:
        r0 += r1
        r1 -= 1
        if r1 == 0 goto out
        goto again
        out: exit
    """

    assert run_code(code) == 55


def test_called_function_has_registers_and_a_stack_of_its_own() -> None:
    code = """
        r6 = 1
        *(u64 *)(r10 -8) = 20
        r1 = r10
        r1 += -8
        call f
        r1 = *(u64 *)(r10 -8)
        r0 += r1
        r0 += r6
        exit
    f:
        r6 = 1000
        *(u64 *)(r10 -8) = 300
        r0 = *(u64 *)(r1 +0)
        r2 = *(u64 *)(r10 -8)
        r0 += r2
        exit
    """

    assert run_code(code) == 20 + 300 + 20 + 1


def test_result_of_a_called_function_has_64_bits() -> None:
    assert run_code("call f\nr0 >>= 32\nexit\nf: r0 = -1\nexit") == 0xFFFF_FFFF


class Shared(Struct):
    KIND = "shared"
    pointer: Cell["Shared | None"] = cell(None)
    count: Cell[int] = cell(0, size=4)

    def __init__(self) -> None:
        self.add_bytes("value", 8)


def test_everything_else_is_a_visible_operation() -> None:
    once = Once()
    shared = once.memory.static(Shared)
    low, high = BPF_LD_IMM64(1, shared.addr)
    code = (
        low,
        high,
        *assemble("""
            *(u64 *)(r1 +12) = -2
            r2 = 3
            lock *(u32 *)(r1 +12) += r2
            lock *(u32 *)(r1 +8) += r2
            *(u8 *)(r1 +15) = r2
            r0 = *(u32 *)(r1 +12)
            exit
        """),
    )
    result = once.run(lambda: bpf_prog_run(once.kernel, program(once.memory, code)))

    assert result == 0x0300_0001
    assert once.steps == ["store", "xadd", "xadd", "store", "load"]
    assert once.faults == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("r1 = 0\nr0 = *(u64 *)(r1 +8)\nexit", "null-ptr-deref"),
        ("r1 = 0x1234567800000000 ll\nr0 = *(u64 *)(r1 +8)\nexit", "wild-memory-access"),
        ("r1 = 0\nlock *(u64 *)(r1 +8) += r1\nr0 = 0\nexit", "null-ptr-deref"),
    ],
)
def test_wrong_address_is_a_fault_of_memory(code: str, kind: str) -> None:
    once = Once()
    prog = program(once.memory, code)
    once.run(lambda: bpf_prog_run(once.kernel, prog))

    assert [fault.kind for fault in once.faults] == [kind]


def test_modelled_stack_names_the_program_and_the_instruction() -> None:
    async def bpf_helper(run: BpfRun, value: int) -> int:
        await note("here")
        return value

    once = Once()
    calls = {200: BpfCall("bpf_helper", 1, bpf_helper)}
    prog = program(once.memory, "r1 = 1\ncall f\nexit\nf: call 200\nexit", calls)

    async def task() -> int:
        return await bpf_prog_run(once.kernel, prog)

    assert once.run(task) == 1
    assert once.stacks["here"][:4] == ["bpf_helper", "bpf_prog_test+3", "bpf_prog_test+1", "task"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("r0 = *(u32 *)(r2 +0)\nexit", "insn 0: (61) r0 = *(u32 *)(r2 +0): r2 is not initialised"),
        ("r1 = r10\n*(u8 *)(r1 -1) = r0\nexit", "insn 1: (73) *(u8 *)(r1 -1) = r0: r0 is not"),
        ("exit", "insn 0: (95) exit: r0 is not initialised"),
        ("call f\nexit\nf: r0 = r3\nexit", "insn 2: (bf) r0 = r3: r3 is not initialised"),
        ("r0 = 0\nr1 = 0\nr0 = *(u64 *)(r10 -520)\nexit", "insn 2: (79) r0 = *(u64 *)(r10 -520): "),
        ("*(u64 *)(r10 -4) = 0\nexit", "8 bytes at offset -4 are outside of its stack"),
        ("r1 = r10\n*(u8 *)(r1 +0) = 0\nexit", "1 bytes at offset 0 are outside of its stack"),
        ("r1 = r10\nr1 += -600\n*(u8 *)(r1 +0) = 0\nexit", "offset -600 are outside of its stack"),
        ("r0 = *(u64 *)(r1 +4)\nexit", "8 bytes at offset 4 are outside of its context"),
        ("call f\nf: call f\nexit", "more than 8 nested calls"),
        ("again: goto again", "(05) goto pc-1: does not end: jumped back 1000000 times"),
        ("goto +100", "insn 0: (05) goto pc+100: jumps out of its function"),
        ("r0 = 0", "insn 0: (b7) r0 = 0: runs on past the last instruction"),
        ("goto +1\nr0 = 1 ll\nexit", "insn 2: BUG_00: this is the middle of a 64-bit constant"),
        ("call pc+7\nexit", "insn 0: (85) call pc+7: calls what is outside of the program"),
        ("call 300\nexit", "insn 0: (85) call unknown#300: calls an unknown function"),
        ("r10 = 0\nexit", "insn 0: (b7) r10 = 0: the frame pointer is read only"),
        ((Insn(0xFF), BPF_EXIT_INSN()), "insn 0: BUG_ff: there is no such instruction"),
        ((Insn(0xB7, 12), BPF_EXIT_INSN()), "insn 0: (b7) r12 = 0: there is no such register"),
        ((BPF_LD_ABS(BPF_W, 0),), "insn 0: (20) r0 = *(u32 *)skb[0]: there is no such instruction"),
        ((BPF_LD_IMM64(1, 5)[0],), "insn 0: BUG_18: this is half a 64-bit constant"),
    ],
)
def test_wrong_program_says_what_is_wrong(code: str | tuple[Insn, ...], message: str) -> None:
    told = error(code, b"\0\0\0\0")

    assert told.startswith("bpf_prog_test: ")
    assert message in told


def test_constant_that_is_jumped_into_works_for_those_who_do_not() -> None:
    assert run_code("r1 = 0\nif r1 == 1 goto +1\nr0 = 7 ll\nexit") == 7


def test_every_opcode_is_translated() -> None:
    for code in sorted(OPCODES):
        translate((Insn(code, 1, 2, 0, 16), Insn(0), BPF_EXIT_INSN()))


def test_bytecode_is_translated_once() -> None:
    code = assemble("r0 = 77\nexit")

    assert translate(code) is translate(assemble("r0 = 77\nexit"))


def test_error_of_a_helper_has_64_bits() -> None:
    async def bpf_helper(_: BpfRun) -> int:
        return -2

    once = Once()
    calls = {200: BpfCall("bpf_helper", 0, bpf_helper)}
    prog = program(once.memory, "call 200\nr0 >>= 32\nexit", calls)

    assert once.run(lambda: bpf_prog_run(once.kernel, prog)) == 0xFFFF_FFFF


def test_defect_of_a_helper_is_not_blamed_on_the_program() -> None:
    async def helper(_: BpfRun) -> int:
        raise UnboundLocalError("a defect")

    once = Once()
    prog = program(once.memory, "call 200\nexit", {200: BpfCall("bpf_helper", 0, helper)})
    with pytest.raises(UnboundLocalError):
        once.run(lambda: bpf_prog_run(once.kernel, prog))
