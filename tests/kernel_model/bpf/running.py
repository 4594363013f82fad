"""Running a program, or any coroutine, once in an execution of its own."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.core import BpfCall, BpfProgramError, bpf_prog_run, bpf_prog_select_runtime
from kernel_model.bpf.insn import Insn
from kernel_model.bpf.prog import BpfProg, BpfProgAux
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from sim.events import Event, Fault
from sim.execution import DONE, Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.ops import NOTE, Op
from sim.stack import unwind
from sim.strategies.dfs import Dfs

T = TypeVar("T")
Task = Coroutine[Op[Any], Any, T]


class Once:
    """A kernel, what happens when a task runs on it, and the stacks of its notes."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.kernel = Kernel(self.memory, "5.10", fixes_of("5.10"))
        self.events: list[Event] = []
        self.stacks: dict[str, list[str]] = {}

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if event.op.kind == NOTE:
            self.stacks[event.op.name] = [str(frame) for frame in unwind(event.thread)]

    def run(self, task: Callable[[], Task[T]]) -> T:
        """What the task returns, or the exception that it raises."""
        results: list[T] = []
        errors: list[Exception] = []

        async def main() -> None:
            try:
                results.append(await task())
            except Exception as error:
                errors.append(error)

        execution = Execution(main, self.memory, Dfs(), observer=self.observe)
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
