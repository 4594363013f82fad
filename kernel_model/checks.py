"""Linux-only detectors: what the kernel's own debug options would have warned of.

Not modelled: the checks of memory and of data races, which know nothing of Linux
(`sim.detectors`).
"""

from __future__ import annotations

from sim.events import Detector


def linux_detectors() -> list[Detector]:
    """The checks, new for every execution."""
    return []
