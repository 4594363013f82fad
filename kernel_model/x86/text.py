"""kernel/bpf/core.c, bpf_jit_binary_alloc; arch/x86/include/asm/text-patching.h (v5.10): text

An :class:`Image` is a piece of text: addressed memory that CPUs fetch instructions from. Most of
it never changes. A :class:`Site` in it is 5 bytes that can be patched while CPUs execute them:
its memory, and for each CPU what that CPU sees there, which is older until the CPU has been
synchronised (`kernel_model.x86.alternative`).

Not modelled: the pages of an image (images lie close together) and their permissions; caches
other than what a CPU sees of a site; CPUs that only kernel threads and bare workload threads run
on see memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, final

from sim.cells import Cell, Lvalue, Struct, cell
from sim.macros import fetch
from sim.ops import Op
from sim.threads import current

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel
    from kernel_model.x86.cpu import Machine

Kind = Literal["nop", "jmp", "call", "int3", "torn"]

POKE_SIZE: Final = 5  # bytes of a site: a nop, or a jump or call with a 32-bit displacement
REL32: Final = 1 << 31


class Text(NamedTuple):
    """The instruction at a site: `target` is where a jump or call goes.

    emulates  of a breakpoint: what its handler does in its place
    """

    op: Kind
    target: int = 0
    emulates: Kind | None = None

    def __str__(self) -> str:
        return f"{self.op} {self.target:#x}" if self.target else self.op

    def disassembled(self) -> str:
        """The instruction as objdump prints it."""
        if self.op == "nop":
            return "nopl   0x0(%rax,%rax,1)"
        return f"{self.op:6} {self.target:#x}" if self.target and not self.emulates else self.op

    def encode(self, ip: int) -> bytes:
        """The five bytes at address `ip`; of a breakpoint, the first one and zeros."""
        if self.op == "nop":
            return bytes.fromhex("0f1f440000")
        if self.op in ("int3", "torn"):
            return b"\xcc\0\0\0\0"
        opcode = b"\xe9" if self.op == "jmp" else b"\xe8"
        return opcode + (self.target - ip - POKE_SIZE & 0xFFFF_FFFF).to_bytes(4, "little")


NOP5: Final = Text("nop")


@final
class Site:
    """Five bytes of an image that can be patched.

    name   what it is for: ``entry``, ``tailcall_bypass``, ``tailcall_target``
    ip     its address
    mem    its memory; `views`: what each CPU sees
    """

    __slots__ = ("image", "ip", "mem", "name", "views")

    def __init__(self, image: Image, name: str, mem: Cell[Text], views: list[Cell[Text]]) -> None:
        self.image: Final = image
        self.name: Final = name
        self.ip: Final = mem.addr
        self.mem: Final = mem
        self.views: Final = tuple(views)

    def fetch(self) -> Op[Text]:
        """What the CPU of the running thread sees there."""
        cpu = current().context.cpu
        place = self.mem if cpu is None else self.views[cpu]
        return fetch(place, place.addr, self.ip)


Entry = Callable[["Machine"], Coroutine[Op[Any], Any, Any]]


class Image(Struct):
    """A piece of text, `size` bytes and what CPUs see of its sites behind them.

    name     of the function, as in stack traces
    length   bytes of text; `code` stands for those that nobody patches
    sites    by offset
    entries  what runs from an offset on: a coroutine function of the machine
    """

    KIND = "bpf_image"
    TEXT = True

    code: Cell[int] = cell(0, size=1)

    def __init__(self, kernel: Kernel, name: str, length: int, sites: dict[int, tuple[str, Text]]):
        self.name: Final = name
        self.length: Final = length
        self.sites: Final[dict[int, Site]] = {}
        self.entries: Final[dict[int, Entry]] = {}
        self._names: dict[int, str] = {}
        behind = (length + 63) & ~63
        for offset, (site, text) in sites.items():
            mem = self._put(offset, POKE_SIZE, text, f".{site}")
            views = []
            for cpu in kernel.cpus:
                seen = f"{self._names[mem.addr]} seen by CPU {cpu.index}"
                views.append(self._put(behind, 8, text, seen))
                behind += 8
            self.sites[offset] = Site(self, site, mem, views)
        self.size = behind

    def _put(self, offset: int, size: int, value: Text, name: str) -> Cell[Text]:
        made = Cell(self, self.addr + offset, size, value)
        if offset:  # at offset 0 is `code`, which stands for what is fetched anywhere
            self._at[offset] = made
        same = sum(other.partition("[")[0] == name for other in self._names.values())
        self._names[made.addr] = f"{name}[{same}]" if same else name
        return made

    def field_name(self, place: Lvalue[Any]) -> str:
        """A site by its name, else the offset."""
        known = None if place is self.code else self._names.get(place.addr)
        return known or f"+{place.addr - self.addr:#x}"

    def symbol(self, pc: int) -> str:
        """An address in it as stack traces show it."""
        return f"{self.name}+{pc - self.addr:#x}"

    def disassembly(self) -> str:
        """The image as objdump shows it; of a plain image nothing is known."""
        return ""

    def pairs(self) -> dict[str, tuple[Site, Site]]:
        """The pairs of sites that belong together, by name; a plain image has none."""
        return {}

    def fetch(self, pc: int) -> Op[int]:
        """Fetch an instruction that nobody patches, at the address `pc`."""
        return fetch(self.code, pc, pc)


def image_at(kernel: Kernel, pc: int) -> Image | None:
    """The image that `pc` lies in, freed or not."""
    found = kernel.memory.object_at(pc)
    return found if isinstance(found, Image) and pc < found.addr + found.length else None
