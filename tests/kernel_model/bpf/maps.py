"""Runs code on the modelled kernel: once, or under the interleavings that there are."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kernel_model.boot import boot
from kernel_model.bpf.anon_inodes import anon_inode_getfd
from kernel_model.bpf.map import BpfMap
from kernel_model.checks import linux_detectors
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from kernel_model.linux.file import FdTable, File, FileOperations
from kernel_model.linux.task import syscall, task
from sim.choosing import Strategy
from sim.detectors import standard_detectors
from sim.detectors.crash import Crash
from sim.detectors.leak import Leak
from sim.detectors.refcount import Refcount
from sim.events import Detector, Event
from sim.execution import DONE, Execution
from sim.hosts import direct
from sim.macros import join, outcome
from sim.memory import Memory
from sim.ops import Op
from sim.stack import function_of
from sim.strategies.dfs import Dfs
from sim.threads import Body, Thread

Code = Coroutine[Op[Any], Any, Any]
Main = Callable[[Kernel], Code]


def run(main: Main, version: str = "5.10", **options: Any) -> Any:
    """What `main` returns when threads run one after the other; nothing may be found."""
    memory = Memory()
    kernel = boot(memory, version, fixes_of(version), **options)
    returned: list[Any] = []

    async def main_thread() -> None:
        returned.append(await main(kernel))

    strategy = Dfs()
    strategy.begin()
    detectors = [*standard_detectors(memory), *linux_detectors()]
    execution = Execution(main_thread, memory, strategy, detectors, audit=True)
    direct.run(execution)

    assert not execution.findings, execution.findings
    assert execution.state == DONE
    return returned[0]


@dataclass
class Explored:
    """What the executions led to.

    outcomes  the values said to be outcomes, and what `main` returned
    wrong     kinds of faults and findings, with the function
    """

    executions: int = 0
    outcomes: set[Any] = field(default_factory=set)
    wrong: set[tuple[str, str]] = field(default_factory=set)

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.wrong}

    def observe(self, event: Event) -> None:
        if event.fault is not None:
            self.wrong.add((event.fault.kind, function_of(event.thread, event.op)))


class Script:
    """One execution: threads in turns, each until it is about to do something or cannot go on.

    A turn is (beginning of the thread's name, "operation" or "operation end-of-place"). After the
    turns the youngest thread goes first.
    """

    def __init__(self, *turns: tuple[str, str]) -> None:
        self._turns = list(turns)
        self._begun = False

    def begin(self) -> bool:
        begun, self._begun = self._begun, True
        return not begun

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        while self._turns:
            name, until = self._turns[0]
            for index, thread in enumerate(enabled):
                if thread.name.startswith(name) and not self._about_to(thread, until):
                    return index
            self._turns.pop(0)
        return len(enabled) - 1

    def choose(self, thread: Thread, n: int) -> int:
        return 0

    def _about_to(self, thread: Thread, until: str) -> bool:
        assert thread.pending is not None
        name, _, place = until.partition(" ")
        label = getattr(thread.pending.target, "label", "")
        return thread.pending.name == name and label.endswith(place)


def explore(
    main: Main,
    version: str = "5.10",
    strategy: Strategy | None = None,
    *,
    add: Iterable[str] = (),
    remove: Iterable[str] = (),
    stop: str = "",
    runs: int | None = None,
    races: bool = False,
    **options: Any,
) -> Explored:
    """All executions of the strategy (default: that there are), or the first so many.

    stop   kind of what is wrong, after which no more executions are needed
    races  whether to look for data races, too (slower)
    """
    explored = Explored()
    chosen = strategy or Dfs()
    fixes = fixes_of(version, add, remove)
    while stop not in explored.kinds and explored.executions != runs and chosen.begin():
        memory = Memory()
        kernel = boot(memory, version, fixes, **options)

        async def main_thread(kernel: Kernel = kernel) -> None:
            await outcome(await main(kernel))

        few: list[Detector] = [Crash(), Refcount(), Leak(memory)]
        detectors = [*(standard_detectors(memory) if races else few), *linux_detectors()]
        execution = Execution(main_thread, memory, chosen, detectors, observer=explored.observe)
        direct.run(execution)
        explored.executions += 1
        explored.outcomes.update(value for _, value in execution.outcomes)
        explored.wrong.update((f.kind, f.title) for f in execution.findings if f.decides)
    return explored


async def together(kernel: Kernel, *bodies: Callable[[], Body]) -> None:
    """Run each as a task on a CPU of its own, and wait for them."""
    tasks = [await task(kernel, body, name=f"t{cpu}", cpu=cpu) for cpu, body in enumerate(bodies)]
    for started in tasks:
        await join(started)


def file_of(kernel: Kernel, fd: int) -> File:
    """The file of a descriptor, without a step."""
    file = kernel.subsystem(FdTable).fd[fd].value
    assert file is not None
    return file


def map_of(kernel: Kernel, fd: int) -> Any:
    """The map of a descriptor, without a step."""
    map = file_of(kernel, fd).private_data
    assert isinstance(map, BpfMap)
    return map


def live_maps(kernel: Kernel) -> list[str]:
    """Labels of what belongs to maps and has not been freed."""
    kinds = {"bpf_map", "bpf_array", "bpf_htab", "buckets", "htab_elem", "percpu"}
    return [made.label for made in kernel.memory.live() if made.KIND in kinds]


async def other_file(kernel: Kernel) -> int:
    """A descriptor of a file that is no map."""

    async def release(kernel: Kernel, file: File) -> None:
        pass

    async with syscall(kernel):
        fops = FileOperations("other", release)
        return await anon_inode_getfd(kernel, fops, kernel.subsystem(FdTable))
