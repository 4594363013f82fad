"""The modelled kernel of one execution: version and fixes, configuration, shared state.

Subsystems keep their static objects in :meth:`Kernel.subsystem`; this module knows none of
them, so that imports go one way.

Not modelled: booting, hotplug, more than one kernel in a run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar, cast, final

from kernel_model.fixes import DEFAULT_VERSION, Fix, describe
from sim.cells import Struct
from sim.cpu import Cpu
from sim.errors import MisuseError, UsageError
from sim.memory import Memory
from sim.sections import Domain

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Struct)
Preempt = Literal["none", "full"]
Fault = Literal["slab", "usercopy"]
Config = Literal["TASKS_RCU"]

NR_CPU_IDS: Final = 4  # possible CPUs, unless the workload places its tasks on a given number


@final
class Kernel:
    """One booted kernel: made anew for every execution.

    memory    where its objects live
    version   the release it mirrors, one of `fixes.VERSIONS`
    fixes     the commits and mutants in force
    preempt   "full" (CONFIG_PREEMPT=y) or "none"
    cpus      the CPUs; threads on one of them share it, threads without one have their own
    faults    what may fail by choice: "slab" (any allocation), "usercopy" (any user access)
    config    options that are off unless asked for, since they cost steps: "TASKS_RCU"

    rcu, rcu_tasks, rcu_tasks_trace  the flavours; without preemption the second is the first
    """

    def __init__(
        self,
        memory: Memory,
        version: str = DEFAULT_VERSION,
        fixes: frozenset[Fix] = frozenset(),
        *,
        preempt: Preempt = "full",
        cpus: int = NR_CPU_IDS,
        faults: frozenset[Fault] = frozenset(),
        config: frozenset[Config] = frozenset(),
    ) -> None:
        if cpus < 1:
            raise UsageError(f"cpus={cpus}: a kernel needs 1 or more CPUs")
        self.memory: Final = memory
        self.version: Final = version
        self.fixes: Final = fixes
        self.preempt: Final = preempt
        self.cpus: Final = tuple(memory.static(Cpu, i) for i in range(cpus))
        self.faults: Final = faults
        self.config: Final = config
        self._domains: dict[str, Domain] = {}
        self.rcu: Final = self.domain("rcu")
        self.rcu_tasks: Final = self.rcu if preempt == "none" else self.domain("rcu_tasks")
        self.rcu_tasks_trace: Final = self.domain("rcu_tasks_trace")
        self._percpu: dict[type[Struct], tuple[Struct, ...]] = {}
        self._subsystems: dict[type[Struct], Struct] = {}
        self._replaced: dict[str, Callable[..., Any]] = {}

    def __str__(self) -> str:
        return describe(self.version, self.fixes)

    def has(self, fix: Fix) -> bool:
        """Whether the commit or mutant is in force."""
        return fix in self.fixes

    def subsystem(self, cls: type[S]) -> S:
        """The one static object of class `cls`, made (without a step) when first asked for.

        Ask while booting (see `kernel_model.boot`), so that its address does not depend on which
        thread comes first.
        """
        found = self._subsystems.get(cls)
        if found is None:
            found = self.memory.static(cls)
            self.keep(self._subsystems, cls, found)
        return cast("S", found)

    def percpu(self, cls: type[S]) -> tuple[S, ...]:
        """One static object of class `cls` for each CPU, made as those of :meth:`subsystem`."""
        found = self._percpu.get(cls)
        if found is None:
            found = tuple(self.memory.static(cls) for _ in self.cpus)
            self.keep(self._percpu, cls, found)
        return cast("tuple[S, ...]", found)

    def domain(self, name: str, *, readers: bool = True) -> Domain:
        """The domain of sections of that name, made as the objects of :meth:`subsystem`."""
        found = self._domains.get(name)
        if found is None:
            found = self.memory.static(Domain, name, readers=readers)
            self.keep(self._domains, name, found)
        return found

    def keep(self, table: dict[Any, Any], key: object, made: object) -> None:
        """Set `table[key]`, outside of cells; an execution that goes back forgets it again."""
        if self.memory.log is not None:
            self.memory.log.item(table, key)
        table[key] = made

    # -- trying a patch --------------------------------------------------------------------

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of the model functions that the workload has replaced, sorted."""
        return tuple(sorted(self._replaced))

    def replace(self, function: Callable[..., Any], mine: Callable[..., Any]) -> None:
        """Run `mine` wherever the model calls `function`, to try a patch.

        Call it before the workload's first `await`; traces and verdicts name what is replaced.
        Raises MisuseError if `function` is not a model function that can be replaced, the
        signatures differ, or the run has begun.
        """
        name = getattr(function, "__name__", repr(function))
        if not hasattr(function, "kernel_function"):
            raise MisuseError(
                f"kernel.replace({name}, ...): {name} cannot be replaced; functions of the model "
                "under `@kernel_function` can"
            )
        if not callable(mine):
            raise MisuseError(f"kernel.replace({name}, {mine!r}): give a function")
        wanted, given = inspect.signature(function), inspect.signature(mine)
        if list(wanted.parameters) != list(given.parameters):
            raise MisuseError(
                f"kernel.replace({name}, ...): the replacement has the parameters {given}, "
                f"the model's function has {wanted}"
            )
        original = inspect.unwrap(function)
        if inspect.iscoroutinefunction(original) != inspect.iscoroutinefunction(mine):
            raise MisuseError(f"kernel.replace({name}, ...): both must be `async def`, or neither")
        if self.memory.step:
            raise MisuseError(f"kernel.replace({name}, ...): call it before the first `await`")
        self._replaced[name] = mine
        self.memory.remarks["replaced"] = " ".join(self.replaced)

    def implementation(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """What runs when the model calls the function `name`."""
        return self._replaced.get(name, default) if self._replaced else default


def kernel_function(
    function: Callable[Concatenate[Kernel, P], R],
) -> Callable[Concatenate[Kernel, P], R]:
    """Mark a function of the model (its first parameter is the kernel) as replaceable."""
    name = function.__name__

    @functools.wraps(function)
    def call(kernel: Kernel, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast("R", kernel.implementation(name, function)(kernel, *args, **kwargs))

    call.kernel_function = True  # type: ignore[attr-defined]  # the mark that replace() looks for
    return cast("Callable[Concatenate[Kernel, P], R]", call)
