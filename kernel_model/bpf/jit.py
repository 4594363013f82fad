"""arch/x86/net/bpf_jit_comp.c (v5.10): the images of programs, and how they read

The layout of an image is that of its machine code (`kernel_model.bpf.jit_layout`); what runs is the
coroutine of the function, entered at offset 0 or where tail calls land.

Not modelled: see there; addresses of functions of the kernel, which calls of helpers go to.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, final

from kernel_model.bpf.core import BpfRun, BpfText
from kernel_model.bpf.jit_layout import Layout, do_jit, machine_code
from kernel_model.bpf.jit_run import _enter, _enter_behind, _land
from kernel_model.fixes import Fix
from kernel_model.x86.text import NOP5, POKE_SIZE, Image, Site, Text
from sim.macros import alloc

if TYPE_CHECKING:
    from kernel_model.bpf.translate import BpfFunc
    from kernel_model.bpf.verifier_state import FunctionFacts
    from kernel_model.kernel import Kernel
    from kernel_model.x86.cpu import Machine


@final
class BpfImage(Image):
    """The image of a function of a program.

    tail_sites  the two sites of a direct tail call, by number of its descriptor
    """

    KIND = "bpf_image"

    def __init__(
        self, kernel: Kernel, text: BpfText, function: BpfFunc, facts: FunctionFacts, layout: Layout
    ) -> None:
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
        self.facts: Final = facts
        self.layout: Final = layout
        self.tail_sites: Final[dict[int, tuple[Site | None, Site]]] = {
            tail.poke: (
                None if tail.bypass is None else self.sites[tail.bypass],
                self.sites[tail.target],
            )
            for tail in layout.tails
        }
        self.entries[0] = partial(_enter, self)
        self.entries[POKE_SIZE] = partial(_enter_behind, self)
        self.entries[layout.landing] = partial(_land, self)

    def pairs(self) -> dict[str, tuple[Site, Site]]:
        """The sites of direct tail calls that have two."""
        return {
            f"tail call {poke}": (bypass, target)
            for poke, (bypass, target) in self.tail_sites.items()
            if bypass is not None
        }

    def disassembly(self) -> str:
        """The image as ``objdump -d`` shows it: address, bytes, instruction.

        What the sites contain now is shown, and marked; each as the memory has it.
        """
        callees = {start: image.addr for start, image in self.text.images.items()}
        constants = dict(self.text.addresses)
        codes = machine_code(
            self.text.insns, self.facts, self.layout, self.addr, constants, callees
        )
        lines = [f"{self.addr:016x} <{self.name}>:"]
        for addr, code in codes:
            site = self.sites.get(addr - self.addr)
            data, told, mark = code.data, self._called(code.text), ""
            if site is not None:
                now = site.mem.value  # for who looks at a run; no step of it
                data, told = now.encode(addr), now.disassembled()
                mark = f"  # {site.name}"
            lines.append(f"{addr:x}:\t{data.hex(' '):<21}\t{told}{mark}")
        return "\n".join(lines)

    def _called(self, told: str) -> str:
        """An instruction; where it calls a function of the kernel, with the name of that."""
        before, mark, number = told.partition("kernel#")
        called = self.text.calls.get(int(number)) if mark else None
        return told if called is None else f"{before}<{called.name}>"

    def new_run(self, m: Machine) -> BpfRun:
        """What the translated instructions work on."""
        return BpfRun(m.kernel, self, m)


async def bpf_jit_binary_alloc(
    kernel: Kernel, text: BpfText, function: FunctionFacts, index: int
) -> BpfImage:
    """Make the image of a function; its tail calls go nowhere yet."""
    in_place = not kernel.has(Fix.TAIL_CALL_SUBPROGS)
    constants = tuple(sorted(text.addresses.items()))
    layout = do_jit(text.insns, function, index, constants, in_place=in_place)
    made = await alloc(BpfImage, kernel, text, text.functions[function.start], function, layout)
    text.images[function.start] = made
    return made
