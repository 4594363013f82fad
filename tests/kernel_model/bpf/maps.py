"""Runs programs on the modelled kernel: one that must succeed, or all interleavings of a small one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from kernel_model.boot import boot
from kernel_model.checks import linux_detectors
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from sim.detectors import standard_detectors
from sim.events import Finding
from sim.execution import DONE, Execution, Strategy
from sim.hosts import direct
from sim.macros import outcome
from sim.memory import Memory
from sim.ops import Op
from sim.strategies.dfs import Dfs

Main = Callable[[Kernel], Coroutine[Op[Any], Any, Any]]


def execute(
    main: Main, strategy: Strategy, version: str, fixes: Iterable[str], options: dict[str, Any]
) -> Execution:
    """One execution, in which `main` returns an outcome."""
    memory = Memory()
    kernel = boot(memory, version, fixes_of(version, fixes), **options)

    async def main_thread() -> None:
        await outcome(await main(kernel))

    detectors = [*standard_detectors(memory, []), *linux_detectors()]
    execution = Execution(main_thread, memory, strategy, detectors, audit=True)
    direct.run(execution)
    return execution


def run(main: Main, version: str = "5.10", **options: Any) -> Any:
    """What `main` returns if threads run one after the other; nothing may be found."""
    strategy = Dfs()
    strategy.begin()
    execution = execute(main, strategy, version, (), options)
    assert not execution.findings, execution.findings
    assert execution.state == DONE

    return execution.outcomes[-1][1]


@dataclass
class Explored:
    """What all executions (with at most so many preemptions) led to.

    findings  by title, the first of each
    """

    executions: int = 0
    outcomes: set[Any] = field(default_factory=set)
    findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings.values()}


def explore(
    main: Main,
    version: str = "5.10",
    *,
    bound: int | None = None,
    fixes: Iterable[str] = (),
    limit: int = 50_000,
    until_found: bool = False,
    **options: Any,
) -> Explored:
    """All executions, or until something is found; a data race on a value decides nothing."""
    explored = Explored()
    strategy = Dfs(bound)
    while strategy.begin():
        execution = execute(main, strategy, version, fixes, options)
        explored.executions += 1
        assert explored.executions < limit, "make the program smaller"
        explored.outcomes.update(value for _, value in execution.outcomes)
        for finding in execution.findings:
            if finding.decides:
                explored.findings.setdefault(finding.title, finding)
        if until_found and explored.findings:
            break
    return explored
