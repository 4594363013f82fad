"""arch/x86/net/bpf_jit_comp.c, do_jit (v5.10): the machine code of a function of a program

`do_jit` lays a function out in passes, as the kernel does, until the jumps are as short as they
can be; `machine_code` gives the instructions at their addresses.

Not modelled: exception tables; retpolines; that an image begins at a random place of its page.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, final

from kernel_model.bpf.insn import (
    BPF_CALL,
    BPF_CLASS,
    BPF_EXIT,
    BPF_JA,
    BPF_JMP,
    BPF_JMP32,
    BPF_OP,
    BPF_PSEUDO_CALL,
    Insn,
    is_ld_imm64,
    is_tail_call,
)
from kernel_model.bpf.jit_emit import (
    Code,
    add_eax_imm8,
    add_rsp,
    call_bytes,
    cmp_eax_imm8,
    emit_insn,
    emit_jcc,
    jcc_bytes,
    jmp_bytes,
    leave,
    load_count,
    mov_rax_rbp_disp,
    mov_rbp_rsp,
    nop2,
    nop5,
    pop,
    push,
    ret,
    store_count,
    sub_rsp,
    xor_eax,
)
from kernel_model.bpf.jit_run import MAX_TAIL_CALL_CNT
from kernel_model.x86.cpu import CALLEE_SAVED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kernel_model.bpf.verifier_state import FunctionFacts

X86_TAIL_CALL_OFFSET: Final = 11
OLD_TAIL_CALL_OFFSET: Final = 25  # before ebf7d1f508a7
OLD_STACK: Final = 512
PASSES: Final = 20  # as many as the kernel tries
FAR: Final = 1 << 20  # where a jump goes before anything is known


class TailSites(NamedTuple):
    """Offsets of the sites of a direct tail call; `bypass` None: there is only one site."""

    poke: int
    bypass: int | None
    target: int


class Layout(NamedTuple):
    """The image of a function.

    number       of the function in its program
    length       bytes; landing: where tail calls enter; epilogue: where it begins
    stack_depth  bytes of the program's stack, `sd` as they are laid out
    saved        callee-saved registers that are pushed, in order
    reachable    whether it has a slot for the tail-call counter
    in_place     whether a tail call enters the frame of who jumps (before ebf7d1f508a7)
    tails        the direct tail calls
    insns        offset of every instruction, and where the last one ends
    """

    number: int
    length: int
    landing: int
    epilogue: int
    stack_depth: int
    sd: int
    saved: tuple[str, ...]
    reachable: bool
    in_place: bool
    tails: tuple[TailSites, ...]
    insns: tuple[int, ...]


@lru_cache(maxsize=256)
def do_jit(
    insns: Sequence[Insn],
    function: FunctionFacts,
    number: int,
    constants: tuple[tuple[int, int], ...] = (),
    *,
    in_place: bool,
) -> Layout:
    """Lay a function out: `function` says which instructions of the program it has.

    constants  those of 64 bits that the loader resolved, by instruction
    """
    depth = OLD_STACK if in_place else function.stack_depth
    layout = Layout(
        number=number,
        length=0,
        landing=OLD_TAIL_CALL_OFFSET if in_place else X86_TAIL_CALL_OFFSET,
        epilogue=FAR,
        stack_depth=depth,
        sd=(depth + 7) & ~7,
        saved=CALLEE_SAVED
        if in_place
        else tuple(CALLEE_SAVED[reg - 6] for reg in function.callee_saved),
        reachable=function.tail_call_reachable and not in_place,
        in_place=in_place,
        tails=(),
        insns=tuple(FAR * at for at in range(function.end - function.start + 1)),
    )
    for _ in range(PASSES):
        before, layout = layout, _Pass(insns, function, layout, 0, dict(constants), {}).run()
        if before.length == layout.length and before.insns == layout.insns:
            break
    return layout


def machine_code(
    insns: Sequence[Insn],
    function: FunctionFacts,
    layout: Layout,
    base: int,
    constants: Mapping[int, int],
    callees: Mapping[int, int],
) -> list[tuple[int, Code]]:
    """The instructions of an image at the address `base`, by address.

    constants  the 64-bit constants that the loader resolved, by instruction
    callees    addresses: of functions by first instruction, of the kernel's by immediate
    """
    last = _Pass(insns, function, layout, base, constants, callees)
    last.run()
    return last.codes


@final
class _Pass:
    """One pass over a function; jumps are as far as the pass before says."""

    def __init__(
        self,
        insns: Sequence[Insn],
        function: FunctionFacts,
        before: Layout,
        base: int,
        constants: Mapping[int, int],
        callees: Mapping[int, int],
    ) -> None:
        self.insns = insns
        self.function = function
        self.before = before
        self.base = base
        self.constants = constants
        self.callees = callees
        self.at = 0
        self.codes: list[tuple[int, Code]] = []
        self.tails: list[TailSites] = []
        self.epilogue = -1

    def run(self) -> Layout:
        self._prologue()
        offsets: list[int] = []
        function = self.function
        skip = False
        for index in range(function.start, function.end):
            offsets.append(self.at)
            if not skip:
                self._insn(index)
            skip = not skip and is_ld_imm64(self.insns[index])
        offsets.append(self.at)
        return self.before._replace(
            length=self.at,
            epilogue=self.epilogue if self.epilogue >= 0 else self.at,
            tails=tuple(self.tails),
            insns=tuple(offsets),
        )

    def emit(self, *codes: Code) -> None:
        for code in codes:
            self.codes.append((self.base + self.at, code))
            self.at += len(code.data)

    def _prologue(self) -> None:
        layout = self.before
        self.emit(nop5())
        if not layout.in_place:
            self.emit(xor_eax() if layout.reachable and layout.number == 0 else nop2())
        self.emit(push("rbp"), mov_rbp_rsp())
        if layout.sd:
            self.emit(sub_rsp(layout.sd))
        if layout.reachable:
            self.emit(push("rax"))
        self.emit(*(push(name) for name in layout.saved))
        if layout.in_place:
            self.emit(Code(b"\x6a\x00", "push   $0x0"))

    def _insn(self, index: int) -> None:
        insn = self.insns[index]
        kind, op = BPF_CLASS(insn.code), BPF_OP(insn.code)
        if is_tail_call(insn):
            self._tail_call(insn, self.before.insns[index + 1 - self.function.start])
        elif kind not in (BPF_JMP, BPF_JMP32):
            following = self.insns[index + 1] if is_ld_imm64(insn) else None
            self.emit(*emit_insn(insn, following, self.constants.get(index)))
        elif op == BPF_EXIT:
            self._exit()
        elif op == BPF_CALL:
            self._call(index, insn)
        else:
            self._jump(index, insn, conditional=op != BPF_JA)

    def _jump(self, index: int, insn: Insn, *, conditional: bool) -> None:
        to = self.before.insns[index + insn.off + 1 - self.function.start]
        mnemonic = ""
        if conditional:
            compare, mnemonic = emit_jcc(insn)
            self.emit(*compare)
        elif insn.off == 0:
            return
        self._go(to, mnemonic)

    def _go(self, to: int, mnemonic: str) -> None:
        """A jump to an offset, in the shortest form that reaches it."""
        for size in (2, 6 if mnemonic else 5):
            rel = to - self.at - size
            target = self.base + to
            code = jcc_bytes(mnemonic, rel, target) if mnemonic else jmp_bytes(rel, target)
            if len(code.data) == size:
                self.emit(code)
                return

    def _call(self, index: int, insn: Insn) -> None:
        layout = self.before
        if layout.reachable:
            self.emit(mov_rax_rbp_disp(-layout.stack_depth - 8))
        ours = insn.src == BPF_PSEUDO_CALL
        to = self.callees.get(index + insn.imm + 1 if ours else -insn.imm, self.base)
        code = call_bytes(to - self.base - self.at - 5, to)
        self.emit(code if ours else code._replace(text=f"call   kernel#{insn.imm}"))

    def _exit(self) -> None:
        if self.epilogue >= 0:
            self._go(self.epilogue, "")
            return
        self.epilogue = self.at
        if self.before.in_place:
            self.emit(pop("rbx"))
        self._pops()
        self.emit(leave(), ret())

    def _pops(self) -> None:
        self.emit(*(pop(name) for name in reversed(self.before.saved)))

    def _unwind(self) -> None:
        """Give the frame up, all but the frame pointer."""
        layout = self.before
        if layout.in_place:
            return
        self._pops()
        self.emit(pop("rax"))
        if layout.sd:
            self.emit(add_rsp(layout.sd))

    def _tail_call(self, insn: Insn, out: int) -> None:
        """The sequence; `out` is the offset behind it, where a run that makes no call goes on."""
        layout = self.before
        count = -layout.sd - 4 - (32 if layout.in_place else 0)
        if not insn.imm:
            self.emit(Code(b"\x89\xd2", "mov    %edx,%edx"))
            self.emit(Code(b"\x39\x56\x24", "cmp    %edx,0x24(%rsi)"))
            self._go(out, "jbe")
        self.emit(load_count(count), cmp_eax_imm8(MAX_TAIL_CALL_CNT))
        self._go(out, "ja")
        self.emit(add_eax_imm8(1), store_count(count))
        if insn.imm:
            bypass = self.at
            if not layout.in_place:
                self.emit(jmp_bytes(out - self.at - 5, self.base + out, near=True))
            self._unwind()
            self.tails.append(TailSites(insn.imm - 1, None if layout.in_place else bypass, self.at))
            self.emit(nop5())
            return
        self.emit(Code(bytes.fromhex("488b8cd610010000"), "mov    0x110(%rsi,%rdx,8),%rcx"))
        self.emit(Code(b"\x48\x85\xc9", "test   %rcx,%rcx"))
        self._go(out, "je")
        self._unwind()
        self.emit(Code(b"\x48\x8b\x49\x30", "mov    0x30(%rcx),%rcx"))
        landing = layout.landing
        self.emit(Code(bytes((0x48, 0x83, 0xC1, landing)), f"add    ${landing:#x},%rcx"))
        self.emit(Code(b"\xff\xe1", "jmp    *%rcx"))
