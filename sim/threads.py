"""Modelled threads and the CPUs that they run on.

A thread is a coroutine, the operation that it will do next, and its state.  Names and keys are
made from the parent's and the n-th fork of the parent, so that a thread is called the same in
every run in which its ancestors do the same, whatever the other threads do.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, final

from sim.cells import Struct
from sim.cpu import Cpu
from sim.errors import MisuseError
from sim.ops import FORK, Op

Body = Coroutine[Op[Any], Any, Any]

KNOWN_RESULTS: Final = 16  # kept of one operation

_INT: Final = int
_BOOL: Final = bool


@final
class Spawn:
    """The operand of a FORK: what the new thread is to run."""

    __slots__ = ("args", "context", "cpu", "function", "name")

    def __init__(
        self,
        function: Callable[..., Body],
        args: tuple[Any, ...],
        name: str,
        cpu: Cpu | None,
        context: Any,
    ) -> None:
        self.function = function
        self.args = args
        self.name = name
        self.cpu = cpu
        self.context = context


@final
class Known:
    """An operation at which a thread has stood, and at which one it stood after which result.

    What a thread does follows from the results that it has had, so all that it can do is a tree.
    """

    __slots__ = ("_following", "_results", "op")

    def __init__(self, op: Op[Any]) -> None:
        self.op = op
        self._results: list[Any] = []
        self._following: list[Known] = []

    def after(self, result: Any) -> Known | None:
        """The next operation after that result, if it has been had before."""
        kind = type(result)
        number = kind is _INT or kind is _BOOL
        for at, before in enumerate(self._results):
            if before is result or (number and type(before) is kind and before == result):
                return self._following[at]
        return None

    def add(self, result: Any, following: Known) -> None:
        """Keep what followed after a result, and of the others the last ones."""
        if len(self._results) == KNOWN_RESULTS:
            del self._results[0], self._following[0]
        self._results.append(result)
        self._following.append(following)

    def forget(self) -> None:
        """Forget what has followed."""
        self._results.clear()
        self._following.clear()


@final
class Thread:
    """A modelled thread: a coroutine, its next operation, its state.

    name      unique; decided by the parent, so independent of the interleaving
    key       unique number of the same property (prefix code of the path from the main thread)
    index     position in `Execution.threads`: the order of creation in this run
    pending   the operation that happens next (None: the thread is running or has ended)
    guarded   whether `pending` may have to wait
    result    result of the last operation, handed over at the next resume
    context   what the modelled kernel keeps per thread; opaque to sim
    function  what the coroutine was made by
    trail     where steps may be taken back: all operations that the thread has done, with their
              results
    at        likewise: the operation at which the thread stands, or that it has just done
    ahead     the next operation, if it is known from an earlier execution
    stands    the operation at which the coroutine is suspended; where that is not `at`, it has to
              be made anew before it can run
    known     how many operations are kept in the tree of all that it has done
    fresh     a copy of the context as it was when the thread started
    statics   static objects that the thread has made; the next one is number `next_static`, and
              whether there was one since the last operation
    owned     what is outside of cells and the thread might change, as it was when it started
    """

    __slots__ = (
        "ahead",
        "allocations",
        "at",
        "context",
        "coroutine",
        "cpu",
        "ended",
        "forks",
        "fresh",
        "function",
        "guarded",
        "index",
        "key",
        "key_bits",
        "known",
        "made_static",
        "name",
        "next_addr",
        "next_static",
        "next_text",
        "owned",
        "parent",
        "pending",
        "result",
        "sections",
        "stands",
        "statics",
        "trail",
    )

    def __init__(
        self, name: str, parent: Thread | None, index: int, cpu: Cpu | None, context: Any
    ) -> None:
        self.name: Final = name
        self.parent: Final = parent
        self.index: Final = index
        self.cpu: Final = cpu
        self.context = context
        self.fresh: Any = None
        self.key, self.key_bits = _key(parent)
        self.coroutine: Body | None = None
        self.pending: Op[Any] | None = None
        self.guarded = False
        self.result: Any = None
        self.ended = False
        self.forks = 0
        self.allocations = 0
        self.sections = 0
        self.next_addr = arena(self)
        self.next_text = 0
        self.function: Callable[[], Body] | None = None
        self.statics: list[Struct] = []
        self.next_static = 0
        self.made_static = False
        self.owned: list[tuple[Any, Any]] = []
        self.trail: list[tuple[Known, Any]] = []
        self.at: Known | None = None
        self.ahead: Known | None = None
        self.stands: Known | None = None
        self.known = 0

    @property
    def addr(self) -> int:
        """What identifies the thread in operations that wait for it."""
        return self.key

    def __repr__(self) -> str:
        return f"<thread {self.name}>"


ARENA_BITS: Final = 24  # each thread allocates from 16 MiB of its own
HEAP_BASE: Final = 0xFFFF_8880_0000_0000  # the direct mapping of x86-64
_KEY_BITS: Final = 22  # so that every arena lies inside the direct mapping (64 TiB)


def _key(parent: Thread | None) -> tuple[int, int]:
    """The key of `parent`'s next child: the parent's key and the child's number, prefix-coded.

    Numbers below 7 take 3 bits, then 7 takes the place of a zero and 3 bits follow, and so on.
    """
    if parent is None:
        return 1, 1
    nth = parent.forks
    bits = 3 * (nth // 7 + 1)
    code = (1 << bits) - 8 + nth % 7  # all ones, three at a time, then the rest
    return (parent.key << bits) | code, parent.key_bits + bits


def arena(thread: Thread) -> int:
    """Where `thread` allocates from: its own part of the simulated address space."""
    if thread.key_bits > _KEY_BITS:
        return 0  # too deep for an address of its own; allocating from it is refused
    return HEAP_BASE + (thread.key << ARENA_BITS)


TEXT_ARENA_BITS: Final = 16  # 64 KiB of text that a thread makes
TEXT_BASE: Final = 0xFFFF_FFFF_A000_0000  # the modules area of x86-64
_TEXT_KEY_BITS: Final = 14  # so that every arena lies inside the modules area


def text_arena(thread: Thread) -> int:
    """Where the text that `thread` makes lies; 0: it is too deep a descendant to have any."""
    if thread.key_bits > _TEXT_KEY_BITS:
        return 0
    return TEXT_BASE + (thread.key << TEXT_ARENA_BITS)


@final
class Running:
    """The thread that runs now, for model code between two operations."""

    def __init__(self) -> None:
        self.thread: Thread | None = None


ACTIVE: Final = Running()


def current() -> Thread:
    """The thread that is running.  Raises MisuseError outside a modelled thread."""
    if ACTIVE.thread is None:
        raise MisuseError("no modelled thread is running: call this from a workload's coroutine")
    return ACTIVE.thread


def spawn(
    function: Callable[..., Body],
    *args: Any,
    name: str = "",
    cpu: Cpu | None = None,
    context: Any = None,
) -> Op[Thread]:
    """Start a thread that runs ``function(*args)``; the result is the thread.

    name     unique among this thread's children (default: the function's name and a number)
    cpu      the CPU that it is bound to (None: one of its own)
    context  per-thread state of the modelled kernel
    """
    if not callable(function):
        raise MisuseError(
            f"spawn({function!r}): give it the function and its arguments, `spawn(f, x)`, "
            "not what it returns"
        )
    op: Op[Thread] = Op(
        FORK, "spawn", target=None, operand=Spawn(function, args, name, cpu, context)
    )
    return op


class ThreadTable:
    """The threads of one execution, by index and by name."""

    def __init__(self) -> None:
        self.all: list[Thread] = []
        self.shared_cpu = False  # whether two threads have been bound to one CPU
        self.holder_waited = False  # whether one that held its CPU has stood before a wait
        self._cpus: set[int] = set()
        self._by_name: dict[str, Thread] = {}

    def start(self, spawn: Spawn, parent: Thread | None) -> Thread:
        """Make the thread that `spawn` describes; its coroutine has not run yet.

        Raises MisuseError for a second thread of one name.
        """
        name = spawn.name or f"{spawn.function.__name__}-{parent.forks if parent else 0}"
        if name in self._by_name:
            raise MisuseError(f"two threads are named {name!r}: give each its own `name=`")
        thread = Thread(name, parent, len(self.all), spawn.cpu, spawn.context)
        if parent is not None:
            parent.forks += 1
        self.all.append(thread)  # first, so that a coroutine that Ctrl-C interrupts is closed
        thread.function = partial(spawn.function, *spawn.args)
        thread.coroutine = thread.function()
        if not hasattr(thread.coroutine, "send"):
            kind = type(thread.coroutine).__name__
            thread.coroutine = None
            raise MisuseError(
                f"thread {name!r} is not a coroutine: spawn an `async def` function, got {kind}"
            )
        if spawn.cpu is not None:
            self.shared_cpu |= spawn.cpu.addr in self._cpus
            self._cpus.add(spawn.cpu.addr)
        self._by_name[name] = thread
        return thread

    def may_wait(self, thread: Thread) -> None:
        """`thread` stands before a step that may have to wait."""
        if thread.cpu is not None and thread.cpu.holder is thread:
            self.holder_waited = True

    def forget(self, thread: Thread) -> None:
        """Undo :meth:`start`, of the thread that was started last."""
        assert self.all[-1] is thread
        self.all.pop()
        del self._by_name[thread.name]
        if thread.cpu is not None and not self.shared_cpu:
            self._cpus.remove(thread.cpu.addr)
        if thread.parent is not None:
            thread.parent.forks -= 1
        if thread.coroutine is not None:
            thread.coroutine.close()

    def close(self) -> None:
        """Abandon every coroutine that has not ended; guards do not run their exits."""
        for thread in self.all:
            if thread.coroutine is not None:
                thread.coroutine.close()
                thread.coroutine = None

    def named(self, name: str) -> Thread | None:
        """The thread of that name; None if it has not been started (yet)."""
        return self._by_name.get(name)
