"""arch/x86/net/bpf_jit_comp.c (v5.10): where everything is in the image of a function

Not modelled: the passes in which the real one shrinks (a program is laid out once, with the
shortest jumps where the kernel has them in its first pass); exception tables.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple, final

from kernel_model.bpf.core import BpfRun, BpfText
from kernel_model.bpf.insn import Insn, is_tail_call
from kernel_model.bpf.jit_run import _enter, _land
from kernel_model.fixes import Fix
from kernel_model.x86.cpu import CALLEE_SAVED
from kernel_model.x86.text import NOP5, POKE_SIZE, Image, Site, Text
from sim.macros import alloc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_model.bpf.translate import BpfFunc
    from kernel_model.bpf.verifier_state import FunctionFacts
    from kernel_model.kernel import Kernel
    from kernel_model.x86.cpu import Machine

X86_TAIL_CALL_OFFSET: Final = 11
OLD_TAIL_CALL_OFFSET: Final = 25  # before ebf7d1f508a7
OLD_STACK: Final = 512
MAX_INSN: Final = 16  # bytes set aside for an instruction of the program


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
    insns        offset of every instruction
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
    insns: Sequence[Insn], function: FunctionFacts, number: int, *, in_place: bool
) -> Layout:
    """Lay a function out: `function` says which instructions of the program it has."""
    depth = OLD_STACK if in_place else function.stack_depth
    sd = (depth + 7) & ~7
    saved = CALLEE_SAVED if in_place else tuple(CALLEE_SAVED[r - 6] for r in function.callee_saved)
    landing = OLD_TAIL_CALL_OFFSET if in_place else X86_TAIL_CALL_OFFSET
    pushes = sum(1 if name == "rbx" else 2 for name in saved)
    at = landing + (0 if in_place else (7 if sd else 0) + function.tail_call_reachable + pushes)
    offsets, tails = [], []
    for insn in insns[function.start : function.end]:
        offsets.append(at)
        if not is_tail_call(insn):
            at += MAX_INSN
            continue
        at += 20  # the test of the counter and its increment
        if insn.imm and in_place:
            tails.append(TailSites(insn.imm - 1, None, at))
            at += POKE_SIZE
        elif insn.imm:
            bypass = at
            at += POKE_SIZE + pushes + 1 + (7 if sd else 0)
            tails.append(TailSites(insn.imm - 1, bypass, at))
            at += POKE_SIZE
        else:
            at += 48
    return Layout(
        number=number,
        length=at + pushes + 2,
        landing=landing,
        epilogue=at,
        stack_depth=depth,
        sd=sd,
        saved=saved,
        reachable=function.tail_call_reachable and not in_place,
        in_place=in_place,
        tails=tuple(tails),
        insns=tuple(offsets),
    )


@final
class BpfImage(Image):
    """The image of a function of a program.

    tail_sites  the two sites of a direct tail call, by number of its descriptor
    """

    KIND = "bpf_image"

    def __init__(self, kernel: Kernel, text: BpfText, function: BpfFunc, layout: Layout) -> None:
        sites: dict[int, tuple[str, Text]] = {0: ("entry", NOP5)}
        name = "ip" if layout.in_place else "tailcall_target"
        for tail in layout.tails:
            if tail.bypass is not None:
                out = Text("jmp", self.addr + tail.target + POKE_SIZE)
                sites[tail.bypass] = ("tailcall_bypass", out)
            sites[tail.target] = (name, NOP5)
        super().__init__(kernel, text.name, layout.length, sites)
        self.text: Final = text
        self.function: Final = function
        self.layout: Final = layout
        self.tail_sites: Final[dict[int, tuple[Site | None, Site]]] = {
            tail.poke: (
                None if tail.bypass is None else self.sites[tail.bypass],
                self.sites[tail.target],
            )
            for tail in layout.tails
        }
        self.entries[0] = partial(_enter, self)
        self.entries[layout.landing] = partial(_land, self)

    def pairs(self) -> dict[str, tuple[Site, Site]]:
        """The sites of direct tail calls that have two."""
        return {
            f"tail call {poke}": (bypass, target)
            for poke, (bypass, target) in self.tail_sites.items()
            if bypass is not None
        }

    def new_run(self, m: Machine) -> BpfRun:
        """What the translated instructions work on."""
        return BpfRun(m.kernel, self, m)


async def bpf_jit_binary_alloc(
    kernel: Kernel, text: BpfText, function: FunctionFacts, index: int
) -> BpfImage:
    """Make the image of a function; its tail calls go nowhere yet."""
    in_place = not kernel.has(Fix.TAIL_CALL_SUBPROGS)
    layout = do_jit(text.insns, function, index, in_place=in_place)
    made = await alloc(BpfImage, kernel, text, text.functions[function.start], layout)
    text.images[function.start] = made
    return made
