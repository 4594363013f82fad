"""Limits of the parameters of the benchmark programs."""

from __future__ import annotations

from sim.errors import UsageError


def within(name: str, value: int, low: int, high: int | None = None, why: str = "") -> None:
    """UsageError if the parameter is less than `low` or more than `high`; `why` says why."""
    if value < low or (high is not None and value > high):
        allowed = f"{low} to {high}" if high is not None else f"{low} or more"
        reason = f": {why}" if why else ""
        raise UsageError(f"--param {name}={value}: a number of {allowed} is needed{reason}")
