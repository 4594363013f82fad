"""Running programs: one alone, one on a booted kernel, or all interleavings of a few tasks."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from kernel_model.boot import boot
from kernel_model.bpf.asm import assemble
from kernel_model.bpf.core import BpfCall, BpfProgramError, bpf_prog_run, translated
from kernel_model.bpf.hooks import (
    attach_sleepable,
    bpf_trace_run,
    call_sleepable,
    detach_sleepable,
    sleepable_hook,
)
from kernel_model.bpf.insn import BPF_EXIT_INSN, Insn, InsnError
from kernel_model.bpf.jit import BpfImage
from kernel_model.bpf.jit_layout import Layout, do_jit
from kernel_model.bpf.prog import (
    BpfProg,
    BpfProgAux,
    bpf_load_program,
    bpf_prog_get,
    bpf_prog_put,
)
from kernel_model.bpf.prog_attr import (
    BPF_F_SLEEPABLE,
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
)
from kernel_model.bpf.verifier_state import FunctionFacts
from kernel_model.checks import linux_detectors
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from kernel_model.linux.preempt import preempt_disable
from kernel_model.linux.task import Context, syscall
from kernel_model.x86.text import Image
from sim.choosing import Strategy
from sim.detectors.crash import Crash
from sim.detectors.leak import Leak
from sim.detectors.refcount import Refcount
from sim.events import Detector, Event, Fault
from sim.execution import DONE, Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.ops import FETCH, LOAD, NOTE, Op
from sim.stack import unwind
from sim.strategies.dfs import Dfs
from sim.threads import current

T = TypeVar("T")
Task = Coroutine[Op[Any], Any, T]


def is_fetch(event: Event) -> bool:
    """Is the step a fetch of instructions, or does it look for the text of a program?"""
    op = event.op
    is_image = isinstance(event.result, Image) and op.kind == LOAD
    return op.kind == FETCH or is_image


class Once:
    """A kernel, what happens when a task runs on it, and the stacks of its notes."""

    def __init__(self, **options: Any) -> None:
        self.memory = Memory()
        self.kernel = Kernel(self.memory, "5.10", fixes_of("5.10"), **options)
        self.events: list[Event] = []
        self.stacks: dict[str, list[str]] = {}

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if event.op.kind == NOTE:
            self.stacks[event.op.name] = [str(frame) for frame in unwind(event.thread)]

    def explore(self, task: Callable[[], Task[T]]) -> set[T]:
        """What the task returns for all choices of values."""
        strategy = Dfs()
        results: set[T] = set()
        while strategy.begin():
            results.add(self.run(task, strategy))
        return results

    def run(self, task: Callable[[], Task[T]], strategy: Strategy | None = None) -> T:
        """What the task returns, or the exception that it raises."""
        results: list[T] = []
        errors: list[Exception] = []

        async def main() -> None:
            thread = current()
            if thread.context is None:
                thread.context = Context(self.kernel, "task", None)
            try:
                results.append(await task())
            except Exception as error:
                errors.append(error)

        execution = Execution(main, self.memory, strategy or Dfs(), observer=self.observe)
        direct.run(execution)
        if errors:
            raise errors[0]
        assert execution.state is DONE
        return results[0]

    @property
    def faults(self) -> list[Fault]:
        return [event.fault for event in self.events if event.fault is not None]

    @property
    def steps(self) -> list[str]:
        """The names of the operations, but for fetches of text and the end of the thread."""
        return [event.op.name for event in self.events[:-2] if not is_fetch(event)]


def program(
    memory: Memory,
    code: str | tuple[Insn, ...],
    calls: dict[int, BpfCall] | None = None,
    *,
    sleepable: bool = False,
) -> BpfProg:
    """An unverified program called `test`."""
    insns = assemble(code) if isinstance(code, str) else code
    aux = memory.static(BpfProgAux, "test", "", sleepable=sleepable)
    prog = memory.static(BpfProg, aux, BPF_PROG_TYPE_RAW_TRACEPOINT)
    prog.text = translated("test", insns, calls or {}, {})
    kernel = Kernel(memory, "5.10", fixes_of("5.10"), cpus=1)
    starts = [*sorted(prog.text.functions), len(insns)]
    for index, (start, end) in enumerate(pairwise(starts)):
        facts = FunctionFacts(start, end, 512, (6, 7, 8, 9), False, False)
        layout = lay_out(prog.text.insns, facts, index)
        image = memory.static(
            BpfImage, kernel, prog.text, prog.text.functions[start], facts, layout
        )
        prog.text.images[start] = image
    prog.bpf_func.value = prog.text.images[0]  # type: ignore[assignment]  # it is one of ours
    return prog


def lay_out(insns: tuple[Insn, ...], facts: FunctionFacts, index: int) -> Layout:
    """The layout of a function; of one that no JIT would take, of an empty one."""
    try:
        return do_jit(insns, facts, index, in_place=False)
    except (InsnError, IndexError):
        empty = (BPF_EXIT_INSN(),)
        return do_jit(empty, facts._replace(start=0, end=1), index, in_place=False)


def run_code(code: str | tuple[Insn, ...], ctx: bytes | bytearray = b"") -> int:
    """The result of an unverified program that touches no memory but its own."""
    once = Once()
    prog = program(once.memory, code)
    result = once.run(lambda: bpf_prog_run(once.kernel, prog, ctx))
    assert once.steps == []
    return result


def error(code: str | tuple[Insn, ...], ctx: bytes = b"") -> str:
    """The message of the error of an unverified program."""
    try:
        run_code(code, ctx)
    except BpfProgramError as problem:
        return str(problem)
    raise AssertionError("the program ran to its end")


# -- on a booted kernel --------------------------------------------------------------------------

Main = Callable[[Kernel], Task[Any]]


@dataclass
class Explored:
    """What executions led to.

    returned  what `main` returned
    wrong     kinds of faults, and titles of findings
    """

    executions: int = 0
    returned: list[Any] = field(default_factory=list)
    wrong: dict[str, None] = field(default_factory=dict)

    def observe(self, event: Event) -> None:
        if event.fault is not None:
            self.wrong[event.fault.kind] = None


def explore(
    main: Main,
    version: str = "5.10",
    *,
    strategy: Strategy | None = None,
    stop: str = "",
    limit: int = 20_000,
    **options: Any,
) -> Explored:
    """All executions of the strategy (default: all there are), or until `stop` has gone wrong."""
    explored = Explored()
    strategy = strategy or Dfs()
    while explored.executions < limit and stop not in explored.wrong and strategy.begin():
        memory = Memory()
        kernel = boot(memory, version, fixes_of(version), **options)

        async def main_thread(kernel: Kernel = kernel) -> None:
            explored.returned.append(await main(kernel))

        detectors: list[Detector] = [Crash(), Refcount(), Leak(memory), *linux_detectors()]
        execution = Execution(
            main_thread,
            memory,
            strategy,
            detectors,
            observer=explored.observe,
            audit=explored.executions == 0,
        )
        direct.run(execution)
        explored.executions += 1
        for finding in execution.findings:
            explored.wrong[finding.title] = None
    return explored


def run(main: Main, version: str = "5.10", **options: Any) -> Any:
    """What `main` returns if threads run one after the other; nothing may go wrong."""
    explored = explore(main, version, limit=1, **options)
    assert not explored.wrong, explored.wrong

    return explored.returned[0]


async def load(
    kernel: Kernel,
    code: str | tuple[Insn, ...],
    prog_type: int = BPF_PROG_TYPE_RAW_TRACEPOINT,
    maps: Mapping[str, int] | None = None,
    **attributes: Any,
) -> int:
    """The descriptor of a verified program, which must be accepted."""
    insns = assemble(code, maps) if isinstance(code, str) else code
    log = bytearray()
    fd = await bpf_load_program(kernel, prog_type, insns, log_buf=log, **attributes)
    assert fd >= 0, log.decode()
    return fd


async def traced(kernel: Kernel, fd: int, *args: int) -> int:
    """What the program of the descriptor returns when it runs at a raw tracepoint."""
    async with syscall(kernel):
        prog = await bpf_prog_get(kernel, fd)
        assert isinstance(prog, BpfProg)
        async with preempt_disable():
            result = await bpf_trace_run(kernel, prog, *args)
        await bpf_prog_put(kernel, prog)
    return result


async def slept(kernel: Kernel, code: str, maps: Mapping[str, int], *args: int) -> int | None:
    """What a program that may sleep returns."""
    hook = sleepable_hook(kernel, "bpf_modify_return_test")
    fd = await load_sleepable(kernel, code, maps)
    async with syscall(kernel):
        assert await attach_sleepable(kernel, hook, fd) == 0
        result = await call_sleepable(kernel, hook, *args)
        assert await detach_sleepable(kernel, hook) == 0
    return result


async def load_sleepable(kernel: Kernel, code: str, maps: Mapping[str, int]) -> int:
    return await load(
        kernel,
        code,
        BPF_PROG_TYPE_TRACING,
        maps,
        flags=BPF_F_SLEEPABLE,
        expected_attach_type=BPF_MODIFY_RETURN,
        attach_to="bpf_modify_return_test",
    )
