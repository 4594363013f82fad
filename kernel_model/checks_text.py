"""Detectors of what goes wrong with text: frames that do not fit, and tail calls without end.

They are told by notes of the machine that executes text (`kernel_model.x86.cpu`), which says what
it finds when a function returns or calls: nothing here knows how a site came to be in its state,
but the history of the sites is kept to be shown.

Not modelled: what a kernel would do next with the wrong registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

from kernel_model.x86.text import POKE_SIZE
from sim import ops
from sim.detectors.describe import call_trace
from sim.events import Detail, Detector, Event, Finding

if TYPE_CHECKING:
    from kernel_model.x86.text import Image, Site, Text

CORRUPTED: Final = "corrupted-frame"
UNBOUNDED: Final = "unbounded-loop"
REWRITTEN: Final = "use-after-free-execute"
_WRITES: Final = ("text_poke int3", "text_poke", "memcpy")
_SHOWN: Final = 12  # changes of a site


def text_detectors(history: SiteHistory) -> list[Detector]:
    """The checks of text, new for every execution; `history` must observe before them."""
    return [CorruptedFrame(history), RewrittenText(), UnboundedTailCalls()]


@final
class SiteHistory:
    """Finds nothing itself: others ask it what was written to a site.

    _written  per site's memory, by address: what was written when by whom
    """

    kinds: frozenset[int] | None = frozenset({ops.STORE})

    def __init__(self) -> None:
        self._written: Final[dict[int, list[str]]] = {}

    def observe(self, event: Event) -> None:
        """Look at what is written to text."""
        op = event.op
        if op.name not in _WRITES or op.target.size != POKE_SIZE:
            return
        written = self._written.setdefault(op.addr, [])
        if written and written[-1].endswith("(text_poke int3)"):
            written.pop()  # this patch goes on
        written.append(f" step {event.step}: {op.operand} by {event.thread.name} ({op.name})")

    def of(self, site: Site) -> list[Detail]:
        """The last changes of a site, if there was any."""
        lines = self._written.get(site.ip, [])[-_SHOWN:]
        where = f"{site.image.name}+{site.ip - site.image.addr:#x}"
        return [Detail(f"History of {site.name} at {where}:", tuple(lines))] if lines else []


@final
class CorruptedFrame:
    """Wrong registers, a wrong stack or a return into nothing, with the history of the sites."""

    kinds: frozenset[int] | None = frozenset({ops.NOTE})

    def __init__(self, history: SiteHistory) -> None:
        self._history: Final = history

    def observe(self, event: Event) -> Finding | None:
        """Look at what the machine says."""
        op = event.op
        if op.name != "corrupted":
            return None
        what, image = op.operand.what, op.operand.image
        title = f"BUG: corrupted frame of {image.name}: {what.partition(':')[0]}"
        details = [Detail(what, ()), call_trace(event.thread), *self._sites(image)]
        return Finding(CORRUPTED, title, (event.thread.name,), event.step, tuple(details))

    def _sites(self, image: Image) -> list[Detail]:
        details = []
        for name, (bypass, target) in image.pairs().items():
            state = site_state(bypass.mem.value, target.mem.value)
            details.append(Detail(f"State of {name} now: {state}", site_code(bypass, target)))
        for site in image.sites.values():
            details += self._history.of(site)
        return details


@final
class RewrittenText:
    """A CPU comes back to text that is not what it has entered.

    _written  per place, by address: who wrote it last, and when
    """

    kinds: frozenset[int] | None = frozenset({ops.REWRITE, ops.NOTE})

    def __init__(self) -> None:
        self._written: Final[dict[int, list[str]]] = {}

    def observe(self, event: Event) -> Finding | None:
        """Look at what is rewritten, and at what the machine says."""
        op = event.op
        if op.kind == ops.REWRITE:
            line = f" step {event.step}: {op.name} by {event.thread.name}"
            self._written.setdefault(op.target.owner.addr, []).append(line)
            return None
        if op.name != "rewritten":
            return None
        symbol, image = op.operand.what, op.operand.image
        told = Detail("The text has been rewritten since it was entered; written:",
                      tuple(self._written.get(image.addr, ())))  # fmt: skip
        return Finding(
            REWRITTEN,
            f"BUG: KASAN: use-after-free-execute in {symbol}",
            (event.thread.name,),
            event.step,
            (told, call_trace(event.thread)),
        )


def site_code(bypass: Site, target: Site) -> tuple[str, ...]:
    """The instructions of a tail call, from before its bypass to behind its target."""
    lines = target.image.disassembly().splitlines()
    starts = [line.partition(":")[0] for line in lines]
    first, last = starts.index(f"{bypass.ip:x}"), starts.index(f"{target.ip:x}")
    return tuple(f" {line.expandtabs()}" for line in lines[max(first - 1, 1) : last + 2])


def site_state(bypass: Text, target: Text) -> str:
    """What the two sites of a direct tail call come to, by the letters of ebf7d1f508a7."""
    jumps, skips = target.op == "jmp", bypass.op == "jmp"
    if "int3" in (bypass.op, target.op):
        return "being patched"
    if jumps:
        return f"{'D' if skips else 'B'}({target.target:#x})"
    return "C" if skips else "A: unwinds its frame, then goes on"


@final
class UnboundedTailCalls:
    """More tail calls in one run of a program than the kernel promises at most."""

    kinds: frozenset[int] | None = frozenset({ops.NOTE})

    def observe(self, event: Event) -> Finding | None:
        """Look at the machine's count."""
        if event.op.name != "tail_call_limit":
            return None
        names: tuple[str, ...] = event.op.operand
        cycle = " -> ".join((*_cycle(names), _cycle(names)[0]))
        return Finding(
            UNBOUNDED,
            f"BUG: unbounded tail calls: {cycle}",
            (event.thread.name,),
            event.step,
            (
                Detail(f"{len(names)} tail calls in one run; at most 33 are to succeed", ()),
                call_trace(event.thread),
            ),
        )


def _cycle(names: Sequence[Any]) -> Sequence[Any]:
    """The shortest sequence that the names repeat at their end."""
    for length in range(1, len(names) // 2 + 1):
        if names[-length:] == names[-2 * length : -length]:
            return names[-length:]
    return names
