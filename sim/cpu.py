"""A processor, as an object of modelled memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from sim.cells import Struct

if TYPE_CHECKING:
    from sim.threads import Thread


@final
class Cpu(Struct):
    """A processor.  Threads that share one never interleave while one of them holds it.

    index   its number
    holder  the thread inside a region that must not be preempted, or None
    """

    KIND = "cpu"

    def __init__(self, index: int) -> None:
        self.index = index
        self.holder: Thread | None = None
        self.size = 8
