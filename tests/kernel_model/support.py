"""Runs small pieces of modelled kernel code under every interleaving."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kernel_model.boot import boot
from kernel_model.checks import linux_detectors
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from sim.cells import Cell, Struct, cell
from sim.detectors import Prediction, standard_detectors
from sim.events import Event, Finding
from sim.execution import REDUNDANT, Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from sim.threads import Body, Thread

Main = Callable[[Kernel, "Shared"], Body]
TASKS_RCU = frozenset({"TASKS_RCU"})


class Shared(Struct):
    """What the threads of a test share."""

    KIND = "shared"
    x: Cell[int] = cell(0)
    y: Cell[int] = cell(0)
    z: Cell[int] = cell(0)
    a_lock: Cell[Thread | None] = cell(None)
    b_lock: Cell[Thread | None] = cell(None)
    done: Cell[int] = cell(0)
    p: Cell[Any] = cell(None)


@dataclass
class Explored:
    """All executions of a program.

    outcomes  per execution, the values said to be outcomes, by name of the thread that said them
    states    how executions ended
    titles    of what was found
    predicted uses after free that another execution is said to have
    """

    executions: int = 0
    outcomes: set[Any] = field(default_factory=set)
    states: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    predicted: list[Prediction] = field(default_factory=list)

    @property
    def titles(self) -> set[str]:
        return {finding.title for finding in self.findings}


def explore(
    main: Main,
    *,
    fixes: Iterable[str] = (),
    observer: Callable[[Event], None] | None = None,
    limit: int = 20_000,
    sanitize: bool = False,
    **options: Any,
) -> Explored:
    """Run ``main(kernel, shared)`` under every interleaving, watched by the Linux checks.

    With `sanitize`, also by the detectors that know nothing of Linux.
    """
    explored = Explored()
    strategy = Dfs(distinct=True)
    while strategy.begin():
        memory = Memory()
        kernel = boot(memory, fixes=fixes_of("5.10", fixes), **options)
        shared = memory.static(Shared)
        sanitizers = standard_detectors(memory, explored.predicted) if sanitize else []
        execution = Execution(
            lambda: main(kernel, shared),  # noqa: B023  # called before the next turn
            memory,
            strategy,
            [*sanitizers, *linux_detectors()],
            observer=observer,
            audit=explored.executions == 0,
        )
        direct.run(execution)
        explored.executions += 1
        assert explored.executions < limit, "make the program smaller"
        explored.findings += execution.findings
        if execution.state is REDUNDANT:
            continue
        explored.states.add(execution.state)
        said = sorted(execution.outcomes, key=lambda pair: pair[0])
        explored.outcomes.add(tuple(value for _, value in said))
    return explored
