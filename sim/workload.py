"""Workloads: one file, one question, and everything fixed about a run but its choices.

A workload is an ``async def`` under :func:`workload`.  Its first parameter is what the model
boots (a kernel; without a model, the memory), the others are its parameters, with defaults::

    @workload()
    async def counter(memory: Memory, n: int = 2) -> None: ...

What a model needs to know (version, fixes) comes through :class:`Model`; sim knows none.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, Protocol, final

from sim.errors import MisuseError, UsageError
from sim.events import Detector
from sim.memory import Memory
from sim.threads import Body

WORKLOADS: Final = "workloads"  # the package in which workloads are looked up by name


@final
@dataclass(frozen=True)
class Parameter:
    """A parameter of a workload or a model: its default gives its type (int, bool or str).

    choices  the values allowed, in order; empty: any of the type
    """

    name: str
    default: int | bool | str
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> int | bool | str:
        """The value that `text` stands for; UsageError says what is allowed."""
        if self.choices:
            if text in self.choices:
                return text
            raise UsageError(f"--param {self.name}={text}: choose one of {', '.join(self.choices)}")
        if isinstance(self.default, bool):
            known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            if text.lower() in known:
                return known[text.lower()]
            raise UsageError(f"--param {self.name}={text}: say true or false")
        if isinstance(self.default, int):
            try:
                value = int(text, 0)
            except ValueError:
                raise UsageError(f"--param {self.name}={text}: a whole number is needed") from None
            if value < 0:
                raise UsageError(f"--param {self.name}={text}: a number of 0 or more is needed")
            return value
        return text


class Booted(Protocol):
    """A model, configured: boots the same machine for every execution."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What was configured, as strings, for the trace and the verdict."""
        ...

    @property
    def version(self) -> str:
        """The version asked for, for reports (a kernel release)."""
        ...

    @property
    def digest(self) -> str:
        """Of the model's sources."""
        ...

    @property
    def rewinds(self) -> bool:
        """Whether all that changes is in cells, so that executions can go back in it."""
        ...

    def boot(self, memory: Memory) -> Any:
        """Make the machine's static state in `memory`; the workload's first argument."""
        ...

    def detectors(self) -> list[Detector]:
        """The model's own detectors, new for every execution."""
        ...


class Model(Protocol):
    """What workloads run on."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The model's own ``--param`` names, which a workload may give other defaults."""
        ...

    def configure(
        self,
        version: str | None,
        add: Sequence[str],
        remove: Sequence[str],
        params: Mapping[str, Any],
    ) -> Booted:
        """The machine of that version, with and without these fixes; UsageError says why not."""
        ...

    def restore(self, environment: Mapping[str, str], params: Mapping[str, Any]) -> Booted:
        """The machine whose `environment` is given (from a trace); UsageError says why not."""
        ...


@final
class BareMachine:
    """No model at all: a workload's first argument is the memory."""

    parameters: tuple[Parameter, ...] = ()
    environment: Mapping[str, str] = {}
    version = ""
    digest = ""
    rewinds = True

    def configure(
        self,
        version: str | None,
        add: Sequence[str],
        remove: Sequence[str],
        params: Mapping[str, Any],
    ) -> BareMachine:
        """Itself; UsageError for options that only a modelled kernel has."""
        del params
        if version or add or remove:
            raise UsageError("--kernel, --with and --without: this workload runs on no kernel")
        return self

    def restore(self, environment: Mapping[str, str], params: Mapping[str, Any]) -> BareMachine:
        """Itself."""
        del environment, params
        return self

    def boot(self, memory: Memory) -> Memory:
        """The memory."""
        return memory

    def detectors(self) -> list[Detector]:
        """None beyond the standard ones."""
        return []


@final
@dataclass(frozen=True)
class Program:
    """A workload with its parameters and its machine fixed: all that is left are choices."""

    workload: Workload
    params: Mapping[str, Any]
    machine: Booted

    def main(self, memory: Memory) -> Callable[[], Body]:
        """The main thread's function, on a machine booted in `memory`."""
        machine = self.machine.boot(memory)
        return lambda: self.workload.function(machine, **self._own())

    def _own(self) -> dict[str, Any]:
        return {p.name: self.params[p.name] for p in self.workload.parameters}

    @property
    def digest(self) -> str:
        """Of the model and of the workload's own file, 16 hex digits."""
        text = self.machine.digest + self.workload.source_digest()
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@final
class Workload:
    """A question about the model, as a program that can be run under any choices.

    source  the file path or dotted name it was found by; empty if found by its own name
    """

    def __init__(
        self, function: Callable[..., Body], model: Model, defaults: Mapping[str, Any]
    ) -> None:
        self.function: Final = function
        self.name: Final = function.__name__
        self.model: Final = model
        self.parameters: Final = _parameters(function)
        self.source = ""
        self.doc: Final = inspect.getdoc(sys.modules[function.__module__]) or ""
        self._defaults: Final = dict(defaults)

    @property
    def summary(self) -> str:
        """The first line of the module's docstring."""
        return self.doc.partition("\n")[0]

    def all_parameters(self) -> dict[str, Parameter]:
        """By name: the model's (with this workload's defaults) and the workload's own."""
        known = {
            p.name: Parameter(p.name, self._defaults.get(p.name, p.default), p.choices)
            for p in self.model.parameters
        }
        return known | {p.name: p for p in self.parameters}

    def prepare(
        self,
        params: Mapping[str, str | int | bool] | None = None,
        *,
        version: str | None = None,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
    ) -> Program:
        """Fix parameters (text is parsed) and machine.  UsageError names what is known."""
        values = self._values(params or {})
        return Program(self, values, self.model.configure(version, add, remove, values))

    def restore(self, params: Mapping[str, Any], environment: Mapping[str, str]) -> Program:
        """The program that a trace's header describes.  UsageError if there is none."""
        values = self._values(params)
        return Program(self, values, self.model.restore(environment, values))

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        known = self.all_parameters()
        values: dict[str, Any] = {name: p.default for name, p in known.items()}
        for name, given in params.items():
            if name not in known:
                names = ", ".join(f"{n}={p.default}" for n, p in known.items()) or "none"
                raise UsageError(f"{self.name} has no parameter {name!r}; it has: {names}")
            values[name] = known[name].parse(given) if isinstance(given, str) else given
        return values

    def source_digest(self) -> str:
        """sha256 of the workload's own file."""
        return file_digest(Path(inspect.getfile(self.function)))


def workload(
    model: Model | None = None, **defaults: Any
) -> Callable[[Callable[..., Body]], Workload]:
    """Make a workload of an ``async def``; `defaults` are for the model's parameters."""
    return lambda function: Workload(function, model or BareMachine(), defaults)


def file_digest(path: Path) -> str:
    """sha256 of a file's text, in hex; line ends do not matter."""
    return hashlib.sha256(path.read_text().encode()).hexdigest()


def _parameters(function: Callable[..., Body]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(function)
    made = []
    if not inspect.signature(function).parameters:
        raise MisuseError(f"workload {function.__name__}: its first parameter is the machine")
    for spec in list(inspect.signature(function).parameters.values())[1:]:
        if spec.default is inspect.Parameter.empty:
            raise MisuseError(f"workload {function.__name__}: give {spec.name!r} a default value")
        if not isinstance(spec.default, int | str):
            raise MisuseError(
                f"workload {function.__name__}: {spec.name!r} defaults to {spec.default!r}; "
                "parameters are whole numbers, true or false, or text"
            )
        hint = hints[spec.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        made.append(Parameter(spec.name, spec.default, choices))
    return tuple(made)


# -- finding workloads -------------------------------------------------------------------------


def find(name: str) -> Workload:
    """The workload of that name, file path (``x.py``) or dotted module name.

    Raises UsageError that lists the known names.
    """
    if name.endswith(".py"):
        return _only(_load_file(Path(name)), name)
    if "." in name:
        return _only(_import(name), name)
    found = known().get(name)
    if found is None:
        raise UsageError(f"no workload is called {name!r}; known: {', '.join(known())}")
    return found


def known() -> dict[str, Workload]:
    """The workloads of the `workloads` package and of those in it, by name, sorted.

    Raises MisuseError for a name that two files give.
    """
    package = importlib.import_module(WORKLOADS)
    found: dict[str, Workload] = {}
    for info in pkgutil.walk_packages(package.__path__, f"{WORKLOADS}."):
        for made in [] if info.ispkg else _workloads(importlib.import_module(info.name)):
            if made.name in found:
                raise MisuseError(f"{info.name}: another file has a workload {made.name!r}")
            found[made.name] = made
    return dict(sorted(found.items()))


def _workloads(module: ModuleType) -> list[Workload]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, Workload) and value.function.__module__ == module.__name__
    ]


def _only(module: ModuleType, name: str) -> Workload:
    found = _workloads(module)
    if len(found) != 1:
        raise UsageError(f"{name} has {len(found)} workloads: one file, one `@workload()`")
    found[0].source = name
    return found[0]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:
        raise UsageError(f"no workload module {name!r}: {error}") from None


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"no workload file {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from None
    return module
