"""A watch on executions that run without end between two operations, where no budget is asked."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Final

from sim.errors import MisuseError
from sim.threads import ACTIVE

STUCK_S: Final = 60  # a single execution that takes this long is stuck between two operations


def watched() -> None:
    """Executions of this process are watched from now on."""
    signal.signal(signal.SIGALRM, _stuck)


def watch(*_: object) -> None:
    """Give the execution that begins now STUCK_S seconds."""
    _arm(STUCK_S)


def rest() -> None:
    """No execution is run for now."""
    _arm(0)


def _arm(seconds: int) -> None:
    # Signals go to the main thread only; and without the handler, an alarm kills.
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGALRM) is _stuck:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _stuck(_signal: int, _frame: FrameType | None) -> None:
    thread = ACTIVE.thread
    cure = "make the workload smaller, or lower --max-steps"
    if thread is not None:
        cure = f"thread {thread.name} runs without reaching an operation: await one in its loop"
    raise MisuseError(f"one execution has taken {STUCK_S} s; {cure}")
