"""Modelled call stacks: read off the suspended coroutines, innermost frame first.

The kernel model mirrors C functions as ``async def`` functions of the same name, so the chain
of awaiting coroutines is the kernel's call stack.  Frames of `sim` itself (macros), of guards
(``__aenter__``) and of the model's own helpers (one leading underscore) are left out.  A
coroutine that runs code of its own (an interpreter) says what it is by a local variable
``modelled_frame`` with a method ``frame() -> Frame``.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from sim.events import Frame, Stack
from sim.ops import Op
from sim.threads import Thread


def unwind(thread: Thread) -> Stack:
    """The modelled stack of a thread that is suspended at an operation."""
    frames = (_frame_of(coroutine) for coroutine in _awaiting(thread))
    return tuple(frame for frame in frames if frame is not None)


def function_of(thread: Thread, op: Op[Any]) -> str:
    """The innermost function of :func:`unwind` other than the operation itself.

    A function of the operation's own name (``refcount_dec_and_test``) is what C would inline,
    and its caller is meant.  Without any frame, the thread's name.  Far cheaper than the whole
    stack: detectors ask for it at many steps.
    """
    if op.function:
        return op.function
    function = ""
    for coroutine in _awaiting(thread):
        code = getattr(coroutine, "cr_code", None)
        name = _names.get(code, "")
        if name == "":
            frame = _frame_of(coroutine)
            name = frame.function if frame is not None else None
            if code is not None and not _interprets(code):
                _names[code] = name
        if name is not None:
            function = name
            if function != op.name:
                break
    return function or thread.name


_names: dict[CodeType | None, str | None] = {}  # of code whose name is always the same


def _interprets(code: CodeType) -> bool:
    return "modelled_frame" in code.co_varnames or "modelled_frame" in code.co_cellvars


def _awaiting(thread: Thread) -> list[Any]:
    """The suspended coroutines, innermost first: that one awaits an operation."""
    chain: list[Any] = []
    coroutine: Any = thread.coroutine
    while coroutine is not None:
        chain.append(coroutine)
        coroutine = getattr(coroutine, "cr_await", None)
    chain.reverse()
    return chain


def _frame_of(coroutine: Any) -> Frame | None:
    """The modelled frame that a coroutine stands for, if any."""
    code = getattr(coroutine, "cr_code", None)
    frame = getattr(coroutine, "cr_frame", None)
    if code is None or frame is None:
        return None
    if _interprets(code):
        own = frame.f_locals.get("modelled_frame")
        if own is not None:
            found: Frame = own.frame()
            return found
    name: str = code.co_name
    if _is_python(name) or frame.f_globals["__name__"].startswith("sim."):
        return None
    return Frame(name)


def _is_python(name: str) -> bool:
    """Whether a function has no counterpart in the kernel: of a guard, a comprehension, a helper.

    A helper of the model begins with one underscore; of the kernel's functions none here does.
    """
    if name.startswith("__"):
        return name.endswith("__")
    return name.startswith(("_", "<"))
