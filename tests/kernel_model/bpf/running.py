"""Running a program, or any coroutine, once in an execution of its own."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.core import BpfCall, BpfProgramError, bpf_prog_run, bpf_prog_select_runtime
from kernel_model.bpf.hooks import (
    attach_sleepable,
    bpf_trace_run,
    call_sleepable,
    detach_sleepable,
    sleepable_hook,
)
from kernel_model.bpf.insn import Insn
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
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from kernel_model.linux.preempt import preempt_disable
from kernel_model.linux.task import syscall
from sim.events import Event, Fault
from sim.execution import DONE, Execution, Strategy
from sim.hosts import direct
from sim.memory import Memory
from sim.ops import NOTE, Op
from sim.stack import unwind
from sim.strategies.dfs import Dfs

T = TypeVar("T")
Task = Coroutine[Op[Any], Any, T]


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
        """The names of the operations, but for the end of the thread."""
        return [event.op.name for event in self.events[:-2]]


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
    prog.text = bpf_prog_select_runtime("test", insns, calls or {}, {})
    return prog


def run(code: str | tuple[Insn, ...], ctx: bytes | bytearray = b"") -> int:
    """The result of an unverified program that touches no memory but its own."""
    once = Once()
    prog = program(once.memory, code)
    result = once.run(lambda: bpf_prog_run(once.kernel, prog, ctx))
    assert once.steps == []
    return result


def error(code: str | tuple[Insn, ...], ctx: bytes = b"") -> str:
    """The message of the error of an unverified program."""
    try:
        run(code, ctx)
    except BpfProgramError as problem:
        return str(problem)
    raise AssertionError("the program ran to its end")


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
