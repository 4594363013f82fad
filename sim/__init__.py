"""The engine: modelled threads, a deterministic execution, strategies, detectors and traces."""

from sim.native import activate as _activate

_activate()
