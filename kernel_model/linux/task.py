"""include/linux/sched.h and kernel/entry/common.c, v5.10: threads, and what each is doing.

Every thread has a :class:`Context`: counters that only the thread itself changes.  What others
can notice follows from them, and :meth:`Context.settle` is the one place that says how:

    ==================  ============================  ===========================================
                        without preemption            with preemption
    ==================  ============================  ===========================================
    holds its CPU       in the kernel and not asleep  there, and preemption, interrupts or bottom
                                                      halves are off
    reader of rcu       while it holds the CPU        while it holds the CPU, or inside
                                                      rcu_read_lock()
    of rcu_tasks        (that flavour is rcu)         in the kernel and not asleep
    of rcu_tasks_trace  inside rcu_read_lock_trace()  inside rcu_read_lock_trace()
    ==================  ============================  ===========================================

Sections of rcu_tasks cost steps that matter only if somebody waits for them, so that kernels
have them only under CONFIG_TASKS_RCU (``Kernel.config``).

Not modelled: migration (a task keeps its CPU); hard interrupts; kernel threads and softirqs
share no CPU with tasks, unless the kernel has only one; a woken task is a reader from its own
next step on, not from the wake-up; cond_resched() switches every time.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, Literal, final

from kernel_model.kernel import Kernel
from sim.cells import Cell
from sim.errors import MisuseError
from sim.macros import cpu_hold, cpu_release, new_section, note, section_begin, section_end
from sim.ops import Op
from sim.sections import Domain, Section
from sim.threads import Body, Thread, current, spawn

Kind = Literal["task", "kworker", "kthread", "softirq"]
TaskWork = Callable[[], Coroutine[Op[Any], Any, None]]


@final
class _Reader:
    """Whether the thread is a reader of a flavour: the section that is open, if any."""

    __slots__ = ("domain", "section")

    def __init__(self, domain: Domain) -> None:
        self.domain: Final = domain
        self.section: Section | None = None

    def settle(self, name: str, *, reads: bool) -> Iterator[Op[None]]:
        """Begin or end the section, unless the state is the one wanted."""
        if reads and self.section is None:
            self.section = new_section()
            yield section_begin(self.domain, self.section, name)
        elif not reads and self.section is not None:
            ended, self.section = self.section, None
            yield section_end(self.domain, ended, name)


@final
class Context:
    """What a thread of the kernel is doing; private to the thread.

    kind             what runs: a user's task, a worker, another kernel thread, a softirq
    cpu              number of the CPU that it shares with others, None: one of its own
    in_kernel        whether it runs kernel code (or sleeps in it); a user task starts outside
    asleep           whether it has given up the CPU until something happens
    preempt_count, irqs_disabled, bh_disabled, rcu_nesting, trace_nesting   nesting depths
    locks            locks held, in the order in which they were taken
    bpf_prog_active  depth of programs that must not be entered again
    tasks_reader     whether Tasks RCU waits for it
    task_work        what it does before it returns to user mode
    machine          its registers and its stack, once it has executed text (kernel_model.x86)
    fail_nth         which of the things that can fail next does (fault_inject); 0: none
    """

    def __init__(self, kernel: Kernel, kind: Kind, cpu: int | None) -> None:
        self.kernel: Final = kernel
        self.kind: Final = kind
        self.cpu: Final = cpu
        self.in_kernel = False
        self.asleep = False
        self.preempt_count = 0
        self.irqs_disabled = 0
        self.bh_disabled = 0
        self.rcu_nesting = 0
        self.trace_nesting = 0
        self.locks: Final[list[Cell[Thread | None]]] = []
        self.bpf_prog_active = 0
        self.tasks_reader = "TASKS_RCU" in kernel.config and kernel.preempt == "full"
        self.task_work: Final[list[TaskWork]] = []
        self.machine: Any = None
        self.fail_nth = 0
        self._has_cpu = False
        self._rcu: Final = _Reader(kernel.rcu)
        self._tasks: Final = _Reader(kernel.rcu_tasks)
        self._trace: Final = _Reader(kernel.rcu_tasks_trace)

    def copy(self) -> Context:
        """Another one of the same state; of a thread that has not begun to run."""
        made = Context(self.kernel, self.kind, self.cpu)
        made.tasks_reader = self.tasks_reader
        return made

    @property
    def user_mode(self) -> bool:
        """Whether it runs outside the kernel."""
        return not self.in_kernel

    @property
    def atomic(self) -> bool:
        """Whether preemption, interrupts or bottom halves are off: it must not sleep."""
        return self.preempt_count > 0 or self.irqs_disabled > 0 or self.bh_disabled > 0

    @property
    def sleep_is_noticed(self) -> bool:
        """Whether others can tell that it sleeps: it ends a section (and gives up the CPU)."""
        return self._rcu.section is not None or self._tasks.section is not None

    def forget_lock(self, place: Cell[Thread | None]) -> None:
        """The thread is about to release a lock; unless it holds it, memory will complain."""
        for at in reversed(range(len(self.locks))):
            if self.locks[at] is place:
                del self.locks[at]
                return

    def settle(self, name: str) -> Iterator[Op[None]]:
        """The operations, called `name`, that make what others notice agree with the counters."""
        preemptible = self.kernel.preempt == "full"
        running = self.in_kernel and not self.asleep
        holds = running and (self.atomic or not preemptible)
        shared = None if self.cpu is None else self.kernel.cpus[self.cpu]
        if holds and not self._has_cpu:
            self._has_cpu = True
            if shared is not None:
                yield cpu_hold(shared, name)
        yield from self._tasks.settle(name, reads=running and self.tasks_reader)
        yield from self._rcu.settle(name, reads=holds or (preemptible and self.rcu_nesting > 0))
        yield from self._trace.settle(name, reads=self.trace_nesting > 0)
        if self._has_cpu and not holds:
            self._has_cpu = False
            if shared is not None:
                yield cpu_release(shared, name)


def context() -> Context:
    """The context of the running thread, which must be in the kernel (else MisuseError)."""
    thread = current()
    found: Context | None = thread.context
    if found is None or not found.in_kernel:
        raise MisuseError(
            f"thread {thread.name} runs kernel code in user mode: write `async with "
            "syscall(kernel):` around it"
        )
    return found


class Guard:
    """Base of guards: `enter` and `leave` give operations; a thread that dies does not leave."""

    def enter(self) -> Iterator[Op[Any]]:
        """The operations done on the way in."""
        raise NotImplementedError

    def leave(self) -> Iterator[Op[Any]]:
        """The operations done on the way out."""
        raise NotImplementedError

    async def __aenter__(self) -> None:
        for op in self.enter():
            await op

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            for op in self.leave():
                await op


@final
class syscall(Guard):
    """From user mode into the kernel and back; task work runs on the way out.

    The thread that starts the others may use it too: it then runs on a CPU of its own.
    """

    def __init__(self, kernel: Kernel, name: str = "syscall") -> None:
        self._kernel: Final = kernel
        self._name: Final = name

    def enter(self) -> Iterator[Op[None]]:
        thread = current()
        if thread.context is None:
            thread.context = Context(self._kernel, "task", None)
        if thread.context.in_kernel:
            raise MisuseError(f"{thread.name} is in the kernel: a syscall starts in user mode")
        return enter_kernel(self._name)

    def leave(self) -> Iterator[Op[None]]:
        return leave_kernel(self._name)

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            works = context().task_work
            while works:
                await works.pop(0)()
        await super().__aexit__(kind, error, traceback)


def enter_kernel(name: str) -> Iterator[Op[None]]:
    """The running thread, in user mode or idle so far, executes kernel code from now on."""
    ctx: Context = current().context
    ctx.in_kernel = True
    ctx.bh_disabled += ctx.kind == "softirq"
    return ctx.settle(name)


def leave_kernel(name: str) -> Iterator[Op[None]]:
    """The running thread executes no more kernel code."""
    ctx = context()
    ctx.bh_disabled -= ctx.kind == "softirq"
    ctx.in_kernel = False
    yield from ctx.settle(name)
    yield note("leave_kernel", name)


@final
class sleeping(Guard):
    """Around an operation that blocks voluntarily: a context switch away, and back."""

    def __init__(self, name: str) -> None:
        self._name: Final = name

    def enter(self) -> Iterator[Op[None]]:
        ctx = context()
        yield note("schedule", self._name)
        ctx.asleep = True
        yield from ctx.settle(self._name)

    def leave(self) -> Iterator[Op[None]]:
        ctx = context()
        ctx.asleep = False
        yield from ctx.settle(self._name)


def might_sleep() -> Op[None]:
    """Say that what follows may sleep, whether it will or not."""
    return note("might_sleep")


def might_fault() -> Op[None]:
    """Say that what follows accesses user memory, which may sleep."""
    return note("might_fault")


async def cond_resched() -> None:
    """Let others run; without preemption a quiescent state."""
    await might_sleep()
    if context().kernel.preempt == "none":
        async with sleeping("cond_resched"):
            pass


def task(
    kernel: Kernel,
    function: Callable[..., Body],
    *args: Any,
    name: str = "",
    cpu: int | None = None,
) -> Op[Thread]:
    """Start a user task, in user mode, that runs ``function(*args)``.

    cpu  index into `kernel.cpus` (default: the tasks of one parent go round the CPUs)
    """
    number = current().forks % len(kernel.cpus) if cpu is None else cpu
    made = Context(kernel, "task", number)
    return spawn(function, *args, name=name, cpu=kernel.cpus[number], context=made)


def kthread(
    kernel: Kernel,
    function: Callable[..., Body],
    *args: Any,
    name: str = "",
    kind: Kind = "kthread",
) -> Op[Thread]:
    """Start a thread of the kernel that runs ``function(*args)``; it is in the kernel at once."""
    return idle_thread(kernel, ret_from_fork, function, *args, name=name, kind=kind)


def idle_thread(
    kernel: Kernel, function: Callable[..., Body], *args: Any, name: str = "", kind: Kind
) -> Op[Thread]:
    """Start a thread of the kernel that is no reader until it enters the kernel by itself.

    It is named after the thread that starts it, which makes the name the same in every run.
    """
    parent = current()
    number = 0 if len(kernel.cpus) == 1 else None
    return spawn(
        function,
        *args,
        name=name or f"{kind}/{parent.name}-{parent.forks}",
        cpu=None if number is None else kernel.cpus[number],
        context=Context(kernel, kind, number),
    )


async def ret_from_fork(function: Callable[..., Body], *args: Any) -> None:
    """What is at the bottom of a kernel thread's stack."""
    for op in enter_kernel("ret_from_fork"):
        await op
    await function(*args)
    for op in leave_kernel("do_exit"):
        await op
