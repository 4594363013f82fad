"""Text of a given width: short names for objects, and lines broken between words."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final, final

from rich.cells import cell_len, chop_cells

from sim.trace.format import Trace


@final
class ShortNames:
    """Calls an object by its kind alone, where the trace has only one of that kind.

    ``bpf_array#main.3.ptrs[2]`` becomes ``bpf_array.ptrs[2]``, in labels and in values.
    """

    def __init__(self, trace: Trace) -> None:
        kinds = {label: label.rpartition(".")[0] for label in trace.state.objects if "." in label}
        for event in trace.events:
            if event.kind == "ALLOC":
                kinds[event.label] = event.label.partition("#")[0]
        count = Counter(kinds.values())
        self._kinds: Final = {label: kind for label, kind in kinds.items() if count[kind] == 1}
        longest_first = sorted(self._kinds, key=len, reverse=True)
        labels = "|".join(re.escape(label) for label in longest_first)
        self._labels: Final = re.compile(rf"(?<![\w.#])(?:{labels})(?!\w)")

    def shorten(self, text: str) -> str:
        """`text` with the short names of the objects in it."""
        return self._labels.sub(self._kind, text) if self._kinds else text

    def _kind(self, found: re.Match[str]) -> str:
        return self._kinds[found[0]]


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """`text` in lines of at most `width` columns of a terminal, all but the first indented.

    Breaks between words, and inside a word that is too long for a line.
    """
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        for part in chop_cells(word, width - len(indent)) or [""]:
            if line and cell_len(line) + 1 + cell_len(part) > width:
                lines.append(line)
                line = indent + part
            else:
                line = f"{line} {part}" if line else part
    return [*lines, line]
