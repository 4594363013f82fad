"""Hypothesis strategies that draw programs: small, and dense in interesting interleavings."""

from dataclasses import dataclass, fields, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from sim import ops
from tests.programs.code import (
    RELATIONS,
    Await,
    Barrier,
    Call,
    Cas,
    Choose,
    Code,
    Expect,
    Follow,
    Fork,
    Held,
    Instruction,
    Locked,
    Meet,
    Modify,
    Program,
    Publish,
    Read,
    Reader,
    Retire,
    Risk,
    Sleep,
    Swap,
    Synchronize,
    Time,
    Touch,
    When,
    Write,
)

READ_ORDERS = (ops.PLAIN, ops.ONCE, ops.ACQUIRE, ops.DEREF)
WRITE_ORDERS = (ops.PLAIN, ops.ONCE, ops.RELEASE)
RMW_ORDERS = (ops.ONCE, ops.ACQUIRE, ops.RELEASE, ops.FULL)


@dataclass(frozen=True)
class Features:
    """What a drawn program may contain."""

    cells: tuple[str, ...] = ("x", "y")
    pointers: tuple[str, ...] = ("p", "q")
    accesses: bool = True  # of cells: loads and stores
    atomics: bool = True  # of cells: read-modify-writes
    fences: bool = True
    waits: bool = True  # wait_until, which may wait for ever
    locks: bool = True
    sections: bool = True
    objects: bool = True
    regions: bool = True
    time: bool = True
    cpus: bool = True
    hogs: bool = True  # who holds a CPU may wait
    forks: bool = True
    choices: bool = True
    checks: bool = False  # that are fatal where they do not hold
    risks: bool = False  # choices of which some values are fatal
    meetings: bool = False  # waits for several cells


ALL = Features()
WAITING = (
    "waits",
    "meetings",
    "locks",
    "sections",
    "objects",
    "forks",
    "time",
)  # what may have to wait


def only(*names: str) -> Features:
    """Programs of few features and places, so that their steps meet often."""
    flags = {field.name: field.name in names for field in fields(Features) if field.type is bool}
    return Features(("x",), ("p",), **flags)


def programs(
    features: Features = ALL,
    *,
    threads: tuple[int, int] = (2, 3),
    length: int = 3,
    weight: int = 12,
) -> SearchStrategy[Program]:
    """Programs of so many threads, each of up to `length` instructions outside of bodies.

    weight  the most instructions a program may have, bodies included
    """
    code = codes(features, length=length, depth=2)
    cpus = st.sampled_from((None, 0, 1) if features.cpus else (None,))

    @st.composite
    def draw_program(draw: DrawFn) -> Program:
        n = draw(st.integers(*threads))
        bodies: list[Code] = []
        left = weight
        for _ in range(n):
            drawn = cut(draw(code), left)
            left -= size(drawn)
            bodies.append(drawn)
        return Program(tuple(bodies), tuple(draw(cpus) for _ in range(n)))

    return draw_program()


def _quiet(features: Features) -> Features:
    """Without what may have to wait."""
    never: dict[str, Any] = dict.fromkeys(WAITING, False)
    return replace(features, **never)


def codes(features: Features, *, length: int, depth: int) -> SearchStrategy[Code]:
    """Sequences of instructions, nested up to `depth` deep."""
    kinds = [*_simple(features), *_objects(features)]
    if depth:
        kinds += _blocks(features, codes(features, length=2, depth=depth - 1))
        if features.cpus:
            held = features if features.hogs else _quiet(features)
            kinds.append(st.builds(Held, codes(held, length=2, depth=depth - 1)))
    return st.lists(st.one_of(kinds), min_size=1, max_size=length).map(tuple)


def size(code: Code) -> int:
    """How many instructions there are in `code`, bodies included."""
    return sum(1 + size(getattr(instruction, "body", ())) for instruction in code)


def cut(code: Code, most: int) -> Code:
    """As many of the first instructions as do not weigh more than `most`."""
    kept: list[Instruction] = []
    for instruction in code:
        most -= size((instruction,))
        if most < 0:
            break
        kept.append(instruction)
    return tuple(kept)


def _simple(features: Features) -> list[SearchStrategy[Instruction]]:
    cell = st.sampled_from(features.cells)
    value = st.integers(0, 2)
    kinds: list[SearchStrategy[Instruction]] = []
    if features.checks:
        kinds.append(st.builds(Expect, cell, st.integers(0, 1)))
    if features.risks:
        kinds += [
            st.builds(Risk, st.just(n), st.sets(st.integers(0, n - 1)).map(sorted).map(tuple))
            for n in (2, 3)
        ]
    if features.accesses:
        kinds += [
            st.builds(Read, cell, st.sampled_from(READ_ORDERS)),
            st.builds(Write, cell, st.none() | value, st.sampled_from(WRITE_ORDERS)),
        ]
    if features.atomics:
        function = st.sampled_from(("add", "inc_not_zero"))
        kinds += [
            st.builds(Swap, cell, value),
            st.builds(Cas, cell, value, value),
            st.builds(Modify, cell, function, st.just(1), st.sampled_from(RMW_ORDERS)),
        ]
    if features.fences:
        kinds.append(st.builds(Barrier, st.sampled_from((ops.ACQUIRE, ops.RELEASE, ops.FULL))))
    if features.choices:
        kinds.append(st.just(Choose()))
    if features.meetings:
        some = st.lists(cell, min_size=2, max_size=3).map(tuple)
        kinds.append(st.builds(Meet, some, st.sampled_from(list(RELATIONS))))
    if features.waits:
        kinds.append(st.builds(Await, cell, st.just(1)))
    if features.sections:
        kinds.append(st.builds(Synchronize, _domain()))
    if features.time:
        kinds += [st.just(Time()), st.builds(Sleep, st.sampled_from((0, 5, 10)))]
    return kinds


def _blocks(features: Features, body: SearchStrategy[Code]) -> list[SearchStrategy[Instruction]]:
    kinds: list[SearchStrategy[Instruction]] = [st.builds(When, st.integers(0, 1), body)]
    if features.locks:
        kinds.append(st.builds(Locked, st.sampled_from("ab"), body, st.booleans()))
    if features.sections:
        kinds.append(st.builds(Reader, _domain(), body))
        if features.forks:
            kinds.append(st.builds(Call, _domain(), body))
    if features.forks:
        cpu = st.sampled_from((None, 0, 1) if features.cpus else (None,))
        kinds.append(st.builds(Fork, body, cpu, st.booleans()))
    return kinds


def _objects(features: Features) -> list[SearchStrategy[Instruction]]:
    kinds: list[SearchStrategy[Instruction]] = []
    pointer = st.sampled_from(features.pointers)
    if features.objects:
        kinds += [
            st.builds(Publish, pointer),
            st.builds(Follow, pointer, st.booleans(), st.booleans()),
            st.builds(Retire, pointer, st.sampled_from(("", "rcu"))),
        ]
    if features.regions:
        kinds.append(_touches())
    return kinds


@st.composite
def _touches(draw: DrawFn) -> Touch:
    width = draw(st.sampled_from((1, 2, 4, 8)))
    offset = width * draw(st.integers(0, 8 // width - 1))
    write = draw(st.none() | st.integers(1, 2))
    return Touch(offset, width, write, draw(st.booleans()), draw(st.booleans()))


def _domain() -> SearchStrategy[str]:
    return st.sampled_from(("rcu", "trace"))
