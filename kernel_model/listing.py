"""All text that there is, as ``objdump -d`` shows it, with what each patched site comes to.

It reads memory from outside of any thread, so it is no step of a run. The runner finds it by
`kernel_model.workload.LinuxMachine.listing`.

Not modelled: the bytes of trampolines, and those of functions of the kernel behind their entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from kernel_model.bpf.jit import BpfImage
from kernel_model.bpf.poke import BpfJitPokeTab
from kernel_model.checks_text import site_state
from kernel_model.x86.text import Image, Site

if TYPE_CHECKING:
    from sim.memory import Memory

_GOES: Final = re.compile(r"\s(?:j\w+|call)\s+0x([0-9a-f]+)")


def text_listing(memory: Memory) -> list[str]:
    """The lines: one block per image that has not been freed, in order of address."""
    lines: list[str] = []
    for image in memory.live():
        if isinstance(image, Image):
            shown = image.disassembly().splitlines() or _entry(image)
            lines += ["", *(_with_symbol(memory, line.expandtabs()) for line in shown)]
            lines += _seen(image)
            if isinstance(image, BpfImage):
                lines += _tail_calls(memory, image)
    return lines[1:]


def _entry(image: Image) -> list[str]:
    """Of text that is no machine code here: the sites."""
    lines = [f"{image.addr:016x} <{image.name}>:"]
    for site in image.sites.values():
        now = site.mem.value
        data = now.encode(site.ip).hex(" ")
        lines.append(f"{site.ip:x}:\t{data:<21}\t{now.disassembled()}  # {site.name}")
    return lines


def _with_symbol(memory: Memory, line: str) -> str:
    """A line with the name of the place that it jumps to or calls."""
    found = _GOES.search(line)
    if found is None:
        return line
    to = int(found[1], 16)
    image = memory.object_at(to)
    name = "no text"
    if isinstance(image, Image):
        name = image.name if to == image.addr else f"{image.name}+{to - image.addr:#x}"
        name += " (freed)" if image.freed else ""
    return f"{line[: found.end()]} <{name}>{line[found.end() :]}"


def _seen(image: Image) -> Iterator[str]:
    """The CPUs that see something else at a site than is in memory."""
    for site in image.sites.values():
        for cpu, view in enumerate(site.views):
            if view.value != site.mem.value:
                yield f"  # CPU {cpu} sees {view.value} at {site.name} ({site.ip:x})"


def _tail_calls(memory: Memory, image: BpfImage) -> Iterator[str]:
    """What the direct tail calls of an image come to, and whose slots they stand for."""
    slots = _slots(memory, image)
    for poke, (bypass, target) in image.tail_sites.items():
        slot, stable = slots.get(poke, ("a slot that no descriptor has any more", True))
        state = _state(bypass, target)
        yield f"  # tail call {poke}, {slot}: {state}{'' if stable else ', not stable yet'}"


def _slots(memory: Memory, image: BpfImage) -> dict[int, tuple[str, bool]]:
    """By number of the descriptor: the slot, and whether the sites are said to agree with it."""
    found = {}
    for tab in memory.live():
        if not isinstance(tab, BpfJitPokeTab):
            continue
        places = zip(tab.images, tab.tail_call, tab.tailcall_target_stable, strict=True)
        for owner, call, stable in places:
            if owner is image:
                map, key, poke = call.value
                found[poke] = f"{map.label}.ptrs[{key}]", stable.value
    return found


def _state(bypass: Site | None, target: Site) -> str:
    if bypass is not None:
        return f"state {site_state(bypass.mem.value, target.mem.value)}"
    return {"nop": "goes on", "jmp": "jumps"}.get(target.mem.value.op, "being patched")
