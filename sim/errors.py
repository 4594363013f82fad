"""The kinds of error, never mixed.

A *finding* about the modelled kernel is a value (:class:`sim.events.Finding`), never an
exception.  What can be raised:

    RcusimError
    ├── MisuseError             the framework is used wrongly; the message says what to write
    │   ├── UsedWithoutAwait    a cell or an operation was used as if it were a value
    │   └── NondeterminismError a workload behaves differently under the same choices
    ├── UsageError              a command line, parameter or file given by a person is wrong
    │   └── TraceError          a trace file is damaged, foreign or of another version
    └── InternalError           a defect of rcusim itself
"""

from __future__ import annotations


class RcusimError(Exception):
    """Base of every exception that rcusim raises on purpose."""


class MisuseError(RcusimError):
    """A workload or a model uses the framework wrongly; the message says what to write."""


class UsedWithoutAwait(MisuseError, TypeError):
    """A cell or an operation stands where a value is needed: an ``await`` is missing."""


class NondeterminismError(MisuseError):
    """Two runs under the same choices differ: something outside the choices decides."""


class UsageError(RcusimError, ValueError):
    """Input from a person (option, parameter, file) is wrong; one line says how."""


class TraceError(UsageError):
    """A trace file cannot be read; names the line and what is wrong with it."""

    def __init__(self, path: str, line: int, problem: str) -> None:
        where = f"{path}:{line}" if line else path
        super().__init__(f"{where}: {problem}")
        self.path = path
        self.line = line
        self.problem = problem


class InternalError(RcusimError):
    """A defect of rcusim itself: please report it with the trace and the command."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"[rcusim internal bug] {problem}")
