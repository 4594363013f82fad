"""mm/slab_common.c and include/linux/slab.h, v5.10: allocate and free.

Not modelled: caches and the reuse of memory (an address is given out once); failures other than
those that are injected.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from kernel_model.kernel import Kernel
from kernel_model.linux.fault_inject import should_fail
from kernel_model.linux.task import might_sleep
from sim.cells import Struct
from sim.macros import alloc, free

S = TypeVar("S", bound=Struct)
Gfp = Literal["GFP_KERNEL", "GFP_USER", "GFP_ATOMIC", "GFP_NOWAIT"]


async def kzalloc(
    kernel: Kernel, cls: type[S], *args: Any, gfp: Gfp = "GFP_KERNEL", **kwargs: Any
) -> S | None:
    """Make ``cls(*args, **kwargs)``; None if memory is short, which is injected: "slab"."""
    if gfp in ("GFP_KERNEL", "GFP_USER"):
        await might_sleep()
    if await should_fail(kernel, "slab", "kzalloc"):
        return None
    made: S = await alloc(cls, *args, **kwargs)
    return made


async def kfree(kernel: Kernel, target: Struct | None, name: str = "kfree") -> None:
    """Free an object, or nothing at all; `name` is what the caller calls it (``kvfree``, ...)."""
    del kernel
    if target is not None:
        await free(target, name)
