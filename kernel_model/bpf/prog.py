"""kernel/bpf/syscall.c, include/linux/bpf.h (v5.10): programs

Not modelled: nothing yet.
"""

from __future__ import annotations

from typing import Final, final

from kernel_model.bpf.core import BpfText
from sim.cells import Cell, Struct, cell


@final
class BpfProg(Struct):
    """`struct bpf_prog`."""

    KIND = "bpf_prog"

    def __init__(self, text: BpfText) -> None:
        self.text: Final = text
