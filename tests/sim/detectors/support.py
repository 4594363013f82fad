"""Small programs under complete search, watched by the standard detectors."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from sim.cells import Bytes, Cell, Struct, cell
from sim.choosing import Strategy
from sim.detectors import Prediction, standard_detectors
from sim.events import Finding
from sim.execution import Execution
from sim.hosts import direct
from sim.macros import gp_end, gp_start, new_section, section_begin, section_end
from sim.memory import Memory
from sim.sections import Domain
from sim.strategies.dfs import Dfs
from sim.threads import Body, Thread, spawn

Program = Callable[["World"], Body]
Task = Callable[["World"], Coroutine[Any, Any, None]]


class Item(Struct):
    KIND = "item"
    value: Cell[int] = cell(7)
    next: Cell["Item | None"] = cell(None)


class Board(Struct):
    """What the threads of a test share."""

    KIND = "board"
    x: Cell[int] = cell(0)
    y: Cell[int] = cell(0)
    racy: Cell[int] = cell(0, legal_races="a statistic")
    item: Cell[Item | None] = cell(None)
    spare: Cell[Item | None] = cell(None, weak=True)
    any: Cell[Struct | None] = cell(None)
    left: Cell[Thread | None] = cell(None)
    right: Cell[Thread | None] = cell(None)
    data: Bytes
    stats: Bytes

    def __init__(self) -> None:
        self.add_bytes("data", 16)
        self.add_bytes("stats", 8, legal_races="counted without a lock")


class World:
    """A board in a memory of its own."""

    def __init__(self) -> None:
        self.memory = Memory(stacks=True)
        self.board = self.memory.static(Board)
        self.rcu = self.memory.static(Domain, "rcu")


class Reading:
    """A reader section as a guard."""

    def __init__(self, world: World) -> None:
        self._rcu = world.rcu
        self._section = new_section()

    async def __aenter__(self) -> None:
        await section_begin(self._rcu, self._section, "rcu_read_lock")

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            await section_end(self._rcu, self._section, "rcu_read_unlock")


async def synchronize_rcu(world: World) -> None:
    await gp_end(world.rcu, await gp_start(world.rcu, "synchronize_rcu"), "synchronize_rcu")


def threads(*tasks: Task) -> Program:
    """A program that runs each task in a thread named after it."""

    async def main(world: World) -> None:
        for task in tasks:
            await spawn(task, world, name=task.__name__)

    return main


@dataclass
class Report:
    """What the detectors said in all executions: one finding of each key, all predictions."""

    findings: dict[str, Finding] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    executions: int = 0
    noticed: int = 0  # executions with a finding

    @property
    def titles(self) -> list[str]:
        return sorted(self.findings)

    @property
    def only(self) -> Finding:
        (found,) = self.findings.values()
        return found


def run(program: Program, strategy: Strategy, report: Report | None = None) -> Execution:
    """Run `program` once; `strategy` has begun."""
    report = report if report is not None else Report()
    world = World()
    execution = Execution(
        lambda: program(world),
        world.memory,
        strategy,
        standard_detectors(world.memory, report.predictions),
    )
    direct.run(execution)
    for found in execution.findings:
        report.findings.setdefault(found.title, found)
    report.executions += 1
    report.noticed += bool(execution.findings)
    return execution


def explore(program: Program) -> Report:
    """Run `program` under every interleaving."""
    report = Report()
    strategy = Dfs()
    while strategy.begin():
        run(program, strategy, report)
    return report


def text(found: Finding) -> str:
    """The details of a report, line by line."""
    lines: list[str] = []
    for detail in found.details:
        lines += [detail.heading, *detail.lines]
    return "\n".join(lines)
