"""Modelled call stacks: read off the suspended coroutines, innermost frame first.

The kernel model mirrors C functions as ``async def`` functions of the same name, so the chain
of awaiting coroutines is the kernel's call stack.  Frames of `sim` itself (macros) and of
guards (``__aenter__``) are left out.  A coroutine that runs code of its own (an interpreter)
says what it is by a local variable ``modelled_frame`` with a method ``frame() -> Frame``.
"""

from __future__ import annotations

from typing import Any

from sim.events import Frame, Stack
from sim.threads import Thread


def unwind(thread: Thread) -> Stack:
    """The modelled stack of a thread that is suspended at an operation."""
    frames: list[Frame] = []
    coroutine: Any = thread.coroutine
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is None:
            break
        name = coroutine.cr_code.co_name
        own = frame.f_locals.get("modelled_frame")
        if own is not None:
            frames.append(own.frame())
        elif not name.startswith("__") and not frame.f_globals["__name__"].startswith("sim."):
            frames.append(Frame(name))
        coroutine = coroutine.cr_await
    frames.reverse()
    return tuple(frames)
