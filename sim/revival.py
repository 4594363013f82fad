"""Threads whose steps were taken back: what they have done, and their coroutines made anew.

What a thread does follows from the results of its operations.  So one that goes back keeps these
results, and gives them to a new coroutine when it has to run; and where it has been before with the
same results, it is known what it does next, and it need not run at all (`Known`).

What a coroutine keeps outside of itself and of cells is not put back.  What it was started with is
looked at again, one level deep, and is refused if it has changed.
"""

from __future__ import annotations

from types import CellType, FunctionType, MethodType
from typing import Any, Final

from sim.cells import Struct
from sim.errors import NondeterminismError
from sim.ops import FORK, WRITING, Op
from sim.threads import ACTIVE, Known, Thread
from sim.undo import Log

KNOWN: Final = 1000  # operations kept of one thread

_PLAIN: Final = (int, str, float, bytes, tuple)


def started(thread: Thread) -> None:
    """Keep what `thread`, which has not run yet, starts with."""
    thread.fresh = copied(thread.context)
    function, args = _given(thread)
    owners: list[Any] = list(args)
    if isinstance(function, MethodType):
        owners.append(function.__self__)
        function = function.__func__
    if isinstance(function, FunctionType) and function.__closure__ is not None:
        for cell in function.__closure__:
            owners += [cell, *_contents(cell)]
    states = [(owner, _state(owner)) for owner in owners]
    thread.owned = [(owner, state) for owner, state in states if state is not None]


def _given(thread: Thread) -> tuple[Any, tuple[Any, ...]]:
    """What the thread runs, and its arguments."""
    made: Any = thread.function
    return made.func, made.args


def _contents(variable: CellType) -> list[Any]:
    """The value of a variable around a function; none if it has not been assigned yet."""
    try:
        return [variable.cell_contents]
    except ValueError:
        return []


def _state(owner: Any) -> list[Any] | None:
    """What a variable, list, dict, set or object holds now, one level deep; None: nothing."""
    if isinstance(owner, CellType):
        return _contents(owner)
    if isinstance(owner, dict):
        return [*owner.keys(), *owner.values()]
    if isinstance(owner, list | set):
        return list(owner)
    if isinstance(owner, Struct | type | FunctionType) or type(owner).__module__[:4] == "sim.":
        return None  # put back by whoever changes it
    held = getattr(owner, "__dict__", None)
    return [*held.keys(), *held.values()] if isinstance(held, dict) else None


def _told(owner: Any) -> str:
    return "a variable around it" if isinstance(owner, CellType) else f"a {type(owner).__name__}"


def _same(now: list[Any] | None, before: list[Any]) -> bool:
    if now is None or len(now) != len(before):
        return False
    return all(
        one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)
        for one, other in zip(now, before, strict=True)
    )


def revive(thread: Thread) -> Op[Any]:
    """Make the coroutine of a thread anew and give it every result: where it stands then.

    Raises NondeterminismError if it does something else than it did before, or if what it was
    started with has changed.
    """
    assert thread.function is not None
    thread.sections = thread.next_static = thread.forks = 0
    if thread.context is not None:
        thread.context = copied(thread.fresh)
    for owner, before in thread.owned:
        if not _same(_state(owner), before):
            raise NondeterminismError(
                f"thread {thread.name} was started with {_told(owner)} that has changed "
                "since: what a thread keeps belongs into its own variables, or into cells"
            )
    coroutine = thread.function()
    again = coroutine.send(None)
    for known, result in thread.trail:
        op = known.op
        if (
            again.__class__ is not Op
            or again.kind != op.kind
            or again.addr != op.addr
            or (again.kind in WRITING and again.operand != op.operand)
        ):
            raise NondeterminismError(
                f"thread {thread.name} did {op!r}, and then {again!r} after the same results: "
                "something outside the choices decides (a global, the clock, a list that threads "
                "share)"
            )
        if op.kind == FORK:
            thread.forks += 1
        again = coroutine.send(result)
    thread.coroutine = coroutine
    return again


def stand(thread: Thread) -> None:
    """Bring the coroutine of `thread` to where the thread stands."""
    assert thread.at is not None
    ACTIVE.thread = thread
    thread.pending = thread.at.op = revive(thread)
    thread.stands = thread.at
    ACTIVE.thread = None


def copied(context: Any) -> Any:
    """A copy of what the modelled kernel keeps per thread, by its method `copy`."""
    return None if context is None else context.copy()


def static_made(thread: Thread | None, made: Struct, roots: list[Struct], log: Log | None) -> None:
    """`thread`, or nobody yet, has made a static object."""
    roots.append(made)
    if log is not None:
        log.grown(roots)
    if thread is not None:
        thread.statics.append(made)
        thread.next_static = len(thread.statics)
        if log is not None:
            log.grown(thread.statics)
            thread.made_static = True


def static_again(thread: Thread, cls: type[Struct]) -> Struct | None:
    """The static object of that class which `thread`, made anew, has made before; None: none.

    Others that it made then may have been kept by whoever asked for them.
    """
    for nth in range(thread.next_static, len(thread.statics)):
        if thread.statics[nth].__class__ is cls:
            thread.next_static = nth + 1
            return thread.statics[nth]
    return None


def remember(thread: Thread) -> None:
    """`thread` has done an operation: what it does next may be known."""
    at, result = thread.at, thread.result
    assert at is not None
    thread.trail.append((at, result))
    thread.ahead = at.after(result)


def learn(thread: Thread, op: Op[Any]) -> None:
    """The coroutine of `thread` has run, and come to `op`."""
    if thread.known == KNOWN:
        thread.known = 0
        for known, _ in thread.trail:
            known.forget()
    following = Known(op)
    if thread.made_static:
        thread.made_static = False  # it has to run, to make it again
    elif thread.at is not None:
        thread.at.add(thread.result, following)
    thread.known += 1
    thread.at = thread.stands = following
