"""kernel/bpf/verifier.c, jit_subprogs; kernel/bpf/core.c (v5.10): programs become text, and end

The steps between a program that is known to be safe and one that others can see, in the kernel's
order, and what is undone when it ends.

Not modelled: the interpreter; a first pass of the JIT that an extra pass changes; constant
blinding; `adjust_poke_descs`, which until 7506d211b932 also moves descriptors that are in front of
what is patched, so that functions miss theirs (and do_jit() writes to NULL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.insn import is_tail_call
from kernel_model.bpf.jit import bpf_jit_binary_alloc
from kernel_model.bpf.ksym import bpf_ksym_add, bpf_ksym_del
from kernel_model.bpf.map_refs import bpf_map_put
from kernel_model.bpf.poke import (
    BpfJitPokeTab,
    TailCall,
    bpf_jit_add_poke_descriptor,
    bpf_tail_call_direct_fixup,
)
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EINVAL, ENOMEM
from kernel_model.linux.slab import kfree, kzalloc
from sim.macros import load, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_model.bpf.arraymap import BpfArray
    from kernel_model.bpf.fixup import PokeFacts
    from kernel_model.bpf.map import BpfMap
    from kernel_model.bpf.prog import BpfProg, BpfProgAux
    from kernel_model.bpf.verifier_state import FunctionFacts
    from kernel_model.kernel import Kernel

Maps = tuple["BpfMap", ...]


async def _track(kernel: Kernel, call: TailCall, aux: BpfProgAux) -> int:
    ops = call.map.ops
    assert ops.map_poke_track is not None
    return await ops.map_poke_track(kernel, call.map, aux)


async def _add_descriptors(
    kernel: Kernel, aux: BpfProgAux, calls: list[TailCall], owners: list[BpfProgAux]
) -> int:
    tab = await bpf_jit_add_poke_descriptor(kernel, calls, owners)
    if tab is None:
        return -ENOMEM
    await store(aux.poke_tab, tab)
    await store(aux.size_poke_tab, len(calls))
    return 0


async def track_pokes(
    kernel: Kernel, aux: BpfProgAux, pokes: Sequence[PokeFacts], maps: Maps
) -> int:
    """The end of fixup_bpf_calls(): the program is found by updates from here on."""
    if not pokes:
        return 0
    calls = [
        TailCall(cast("BpfArray", maps[poke.map_index]), poke.key, number)
        for number, poke in enumerate(pokes)
    ]
    error = await _add_descriptors(kernel, aux, calls, [aux] * len(calls))
    for call in calls:
        error = error or await _track(kernel, call, aux)
    return error


@kernel_function
async def jit_subprogs(
    kernel: Kernel, prog: BpfProg, functions: Sequence[FunctionFacts], maps: Maps
) -> int:
    """Make a program of every function, lay them out, publish their symbols."""
    funcs: list[BpfProg] = []
    error = 0
    for function in functions:
        func = await _new_function(kernel, prog)
        if func is None:
            error = -ENOMEM
            break
        funcs.append(func)
        error = await _take_descriptors(kernel, prog, func, function)
        if error:
            break
        image = await bpf_jit_binary_alloc(kernel, prog.text, function, len(funcs) - 1)
        await store(func.bpf_func, image)
    shared = kernel.has(Fix.SUBPROG_UNTRACK)
    if not error and not shared:
        await _untrack(kernel, prog.aux, maps)
    if error:
        for func in funcs:
            if not shared:
                await _untrack(kernel, func.aux, maps)
            await bpf_jit_free(kernel, func)
        return error
    for func in funcs:
        image = await load(func.bpf_func)
        assert image is not None
        table = prog.aux if shared else func.aux
        await bpf_tail_call_direct_fixup(kernel, await load(table.poke_tab), func.aux, image)
    for func in funcs:
        image = await load(func.bpf_func)
        assert image is not None
        await bpf_ksym_add(kernel, image)
    await store(prog.bpf_func, await load(funcs[0].bpf_func))
    await store(prog.aux.func, tuple(funcs))
    return 0


async def _new_function(kernel: Kernel, prog: BpfProg) -> BpfProg | None:
    made: Any = await kzalloc(kernel, type(prog.aux), prog.aux.name, "", sleepable=False)
    if made is None:
        return None
    func = await kzalloc(kernel, type(prog), made, prog.type, prog.expected_attach_type)
    if func is None:
        await kfree(kernel, made)
    return func


async def _take_descriptors(
    kernel: Kernel, prog: BpfProg, func: BpfProg, function: FunctionFacts
) -> int:
    """Give a function the descriptors of its tail calls, and have them tracked.

    The first instruction behind the function counted as one of it before f263a81451c1.
    """
    tab = await load(prog.aux.poke_tab)
    if tab is None:
        return 0
    shared = kernel.has(Fix.SUBPROG_UNTRACK)
    end = function.end if shared else function.end + 1
    pokes = [insn.imm - 1 for insn in prog.text.insns[function.start : end]
             if is_tail_call(insn) and insn.imm]  # fmt: skip
    if shared:
        for poke in pokes:
            tab.owners[poke] = func.aux
        return 0
    if not pokes:
        return 0
    calls = [await load(tab.tail_call[poke]) for poke in pokes]
    error = await _add_descriptors(kernel, func.aux, calls, [func.aux] * len(calls))
    for call in calls:
        error = error or await _track(kernel, call, func.aux)
    return error


@kernel_function
async def bpf_prog_select_runtime(
    kernel: Kernel, prog: BpfProg, functions: Sequence[FunctionFacts]
) -> int:
    """Lay out a program that has one function; its tail calls go where they should."""
    if await load(prog.bpf_func) is not None:
        return 0
    image = await bpf_jit_binary_alloc(kernel, prog.text, functions[0], 0)
    await bpf_tail_call_direct_fixup(kernel, await load(prog.aux.poke_tab), prog.aux, image)
    await store(prog.bpf_func, image)
    return 0


@kernel_function
async def bpf_check_tail_call(kernel: Kernel, prog: BpfProg, maps: Maps) -> int:
    """Every prog array of the program takes programs of its kind: 0 or -EINVAL."""
    from kernel_model.bpf.prog_array import bpf_prog_array_compatible  # noqa: PLC0415  # which loads programs itself

    for map in maps:
        if map.map_type == BPF_MAP_TYPE_PROG_ARRAY:
            if not await bpf_prog_array_compatible(kernel, cast("BpfArray", map), prog):
                return -EINVAL
    return 0


async def bpf_prog_kallsyms_add(kernel: Kernel, prog: BpfProg) -> None:
    """From here on the text of the program can be patched."""
    if await load(prog.aux.func):
        return  # jit_subprogs() has done it
    image = await load(prog.bpf_func)
    assert image is not None
    await bpf_ksym_add(kernel, image)


async def bpf_prog_kallsyms_del_all(kernel: Kernel, prog: BpfProg) -> None:
    for func in await load(prog.aux.func) or (prog,):
        image = await load(func.bpf_func)
        if image is not None:
            await bpf_ksym_del(kernel, image)


# -- the end -------------------------------------------------------------------------------------


async def _untrack(kernel: Kernel, aux: BpfProgAux, maps: Maps) -> None:
    for map in maps:
        if map.ops.map_poke_untrack is not None:
            await map.ops.map_poke_untrack(kernel, map, aux)


async def __bpf_free_used_maps(kernel: Kernel, aux: BpfProgAux, maps: Maps) -> None:
    for map in maps:
        if map.ops.map_poke_untrack is not None and not kernel.has(Fix.NO_UNTRACK):
            await map.ops.map_poke_untrack(kernel, map, aux)
        await bpf_map_put(kernel, map)


async def bpf_jit_free(kernel: Kernel, prog: BpfProg) -> None:
    """Free the image of a program or function, and all that belongs to it alone."""
    image = await load(prog.bpf_func)
    if image is not None and not await load(prog.aux.func):
        await kfree(kernel, image, "bpf_jit_binary_free")
    tab: BpfJitPokeTab | None = await load(prog.aux.poke_tab)
    await kfree(kernel, tab)
    await kfree(kernel, prog.aux)
    await kfree(kernel, prog, "vfree")
