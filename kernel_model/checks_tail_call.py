"""Detectors of tail calls that go where the prog array does not say, or may not say.

`StaleTailCall` compares memory with memory, once everything has ended: what is in a slot, and what
the sites say that stand for it. It does not ask who should have patched them. `WrongType` is told
by the machine that executes text, as the detectors of `kernel_model.checks_text` are.

Not modelled: programs that are not jited, which must not be mixed with others either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from kernel_model.bpf.arraymap import BpfArray
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.ksym import BpfKsyms
from kernel_model.bpf.poke import BpfJitPokeTab, jump_to
from kernel_model.bpf.prog_array import BpfArrayAux
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SCHED_CLS,
    BPF_PROG_TYPE_TRACING,
)
from kernel_model.checks_text import SiteHistory, site_code, site_state
from kernel_model.x86.text import NOP5, POKE_SIZE, Image, Site, Text
from sim import ops
from sim.detectors.describe import call_trace
from sim.events import Detail, Detector, Event, Finding, Snapshot
from sim.undo import Log

if TYPE_CHECKING:
    from kernel_model.bpf.poke import TailCall
    from kernel_model.bpf.prog import BpfProg
    from sim.cells import Lvalue

STALE: Final = "stale-tail-call"
WRONG_TYPE: Final = "wrong-type-tail-call"
_TYPES: Final = {
    BPF_PROG_TYPE_SCHED_CLS: "sched_cls",
    BPF_PROG_TYPE_RAW_TRACEPOINT: "raw_tracepoint",
    BPF_PROG_TYPE_TRACING: "tracing",
    BPF_PROG_TYPE_LSM: "lsm",
    BPF_PROG_TYPE_EXT: "ext",
}


def tail_call_detectors(history: SiteHistory) -> list[Detector]:
    """The checks of tail calls, new for every execution; `history` must observe before them."""
    return [StaleTailCall(history), WrongType()]


class _Sites(NamedTuple):
    """The sites of a direct tail call, and the slot that they stand for."""

    call: TailCall
    bypass: Site | None
    target: Site

    @property
    def slot(self) -> str:
        return f"{self.call.map.label}.ptrs[{self.call.key}]"

    def wanted(self) -> list[tuple[Site, Text]]:
        """What the sites are to say, by what is in the slot."""
        prog: BpfProg | None = self.call.map.ptrs[self.call.key].value
        found = [(self.target, jump_to(None if prog is None else prog.bpf_func.value))]
        if self.bypass is not None:
            skip = Text("jmp", self.target.ip + POKE_SIZE)
            found.insert(0, (self.bypass, skip if prog is None else NOP5))
        return found

    def agree(self) -> bool:
        """Whether memory, and every CPU, has what the sites are to say."""
        return all(
            place.value == text for site, text in self.wanted() for place in (site.mem, *site.views)
        )


@final
class StaleTailCall:
    """At the end a program that can be run tail-calls something else than the slot holds.

    The invariant: of every image that has its symbol, each direct tail call says what its slot
    says: a jump to the landing point of the program and an open bypass, or a closed bypass and no
    jump. While the array is updated that may be otherwise, and so it may before the image has its
    symbol and after it has lost it: nothing waits for the patches of such an image.

    _slots  per slot of an array of pointers, by address: what was put there, when, by whom
    """

    kinds: frozenset[int] | None = frozenset({ops.XCHG, ops.QUIESCENT})
    log: Log | None = None  # as in `kernel_model.checks`

    def __init__(self, history: SiteHistory) -> None:
        self._history: Final = history
        self._slots: Final[dict[int, list[tuple[str, str]]]] = {}

    def observe(self, event: Event) -> tuple[Finding, ...] | None:
        """Look at what is put into slots, and at the end of everything."""
        if event.snapshot is not None:
            sites = _direct_tail_calls(event.snapshot)
            return tuple(self._finding(event, site) for site in sites if not site.agree())
        place, thread = event.op.target, event.thread.name
        if place is not None and _is_slot(place):
            line = f" step {event.step}: {_program(event.op.operand)} by {thread}"
            told = self._slots.setdefault(place.addr, [])
            told.append((thread, line))
            if self.log is not None:
                self.log.grown(told)
        return None

    def _finding(self, event: Event, sites: _Sites) -> Finding:
        assert event.snapshot is not None
        bypass, target, image = sites.bypass, sites.target, sites.target.image
        slot = sites.call.map.ptrs[sites.call.key]
        told = self._slots.get(slot.addr, [])
        details = [
            Detail(f"{sites.slot} holds {_program(slot.value)}", ()),
            Detail(f"{image.name} has for it:", tuple(_said(event.snapshot, sites))),
        ]
        if bypass is not None:
            state = site_state(bypass.mem.value, target.mem.value)
            details.append(Detail(f"State of its sites: {state}", site_code(bypass, target)))
        if told:
            details.append(Detail(f"History of {sites.slot}:", tuple(line for _, line in told)))
        for site in (bypass, target):
            details += [] if site is None else self._history.of(site)
        return Finding(
            STALE,
            f"BUG: stale tail call in {image.name}: it does not do what {sites.slot} says",
            (told[-1][0],) if told else (),
            event.step,
            tuple(details),
            fatal=False,
        )


def _is_slot(place: Lvalue[Any]) -> bool:
    """Whether it is one of a prog array: nothing else that is exchanged lies behind the map."""
    array = place.owner
    if not isinstance(array, BpfArray) or array.map_type != BPF_MAP_TYPE_PROG_ARRAY:
        return False
    return place.addr >= array.ptrs.addr


def _direct_tail_calls(snapshot: Snapshot) -> Iterator[_Sites]:
    """Those of all images that have a symbol, through the descriptors that are in memory."""
    symbols = {
        ksym.start
        for found in snapshot.roots
        if isinstance(found, BpfKsyms)
        for ksym in found.bpf_tree.value
    }
    for tab in snapshot.live:
        if not isinstance(tab, BpfJitPokeTab):
            continue
        for image, place in zip(tab.images, tab.tail_call, strict=True):
            call = place.value
            if image is None or image.addr not in symbols or call.map.freed:
                continue
            sites = image.tail_sites.get(call.poke)
            if sites is not None and call.key < len(call.map.ptrs):  # else one has no other
                yield _Sites(call, *sites)


def _said(snapshot: Snapshot, sites: _Sites) -> Iterator[str]:
    """What the sites say and should say, where, and the CPUs that see something else."""
    for site, wanted in sites.wanted():
        now = site.mem.value
        where = f"{site.name} at {site.image.symbol(site.ip)} ({site.ip:#x})"
        yield f" {where}: {_meaning(snapshot, now)}, is to be {_meaning(snapshot, wanted)}"
        for cpu, view in enumerate(site.views):
            if view.value != now:
                yield f"  CPU {cpu} sees {_meaning(snapshot, view.value)}"


def _meaning(snapshot: Snapshot, text: Text) -> str:
    """An instruction, and where it goes."""
    if not text.target:
        return str(text)
    for found in snapshot.live:
        if isinstance(found, Image) and found.addr <= text.target < found.addr + found.length:
            return f"{text} ({found.symbol(text.target)})"
    return f"{text} (where no text is any more)"


def _program(prog: BpfProg | None) -> str:
    return "no program" if prog is None else f"{prog.label} ({prog.text.name})"


@final
class WrongType:
    """A program tail-calls one of another type, to which its context means nothing.

    _owners  of prog arrays: which type was made the owner, when, by whom, of which array
    """

    kinds: frozenset[int] | None = frozenset({ops.STORE, ops.NOTE})

    def __init__(self) -> None:
        self._owners: Final[list[str]] = []

    def observe(self, event: Event) -> Finding | None:
        """Look at who becomes the owner of an array, and at what the machine says."""
        op, thread = event.op, event.thread
        if op.kind == ops.STORE:
            aux = None if op.target is None else op.target.owner
            if isinstance(aux, BpfArrayAux) and op.target is aux.type:
                line = f" step {event.step}: {_TYPES[op.operand]} by {thread.name}, {aux.label}"
                self._owners.append(line)
            return None
        if op.name != "wrong_type":
            return None
        caller, callee = op.operand
        return Finding(
            WRONG_TYPE,
            f"BUG: tail call to a program of another type: {caller.name} -> {callee.name}",
            (thread.name,),
            event.step,
            (
                Detail(
                    f"{caller.name} is of type {_TYPES[caller.text.prog_type]}, "
                    f"{callee.name} of type {_TYPES[callee.text.prog_type]}",
                    (),
                ),
                call_trace(thread),
                Detail("Owners of prog arrays, as they were set:", tuple(self._owners)),
            ),
        )
