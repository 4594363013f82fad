"""The engine: modelled threads, a deterministic execution, strategies, detectors and traces."""
