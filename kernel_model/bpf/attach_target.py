"""kernel/bpf/verifier.c, check_attach_btf_id (v5.10): what a program is attached to

The rules are in `kernel_model.bpf.prog_types`; here is where their facts come from, and what the
target comes to: a function of the kernel or one of a program's, and its trampoline.

Not modelled: BTF. A function of a program has its number in it as its id, from 1 on; its main
function has one argument, and every other one is traced with five, as v5.10 does where BTF does not
describe a function reliably. Whether the types of an extension match those of what it replaces.
The trampoline is taken once the program is known to be safe, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kernel_model.bpf.ftrace import Ftrace
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_TRACING,
)
from kernel_model.bpf.prog_types import TRAMPOLINES, bpf_check_attach_target
from kernel_model.bpf.trampoline import (
    BpfTrampoline,
    TargetInfo,
    TrampolineKey,
    bpf_trampoline_get,
    bpf_trampoline_put,
)
from kernel_model.bpf.verifier_state import Refused, TargetFacts
from kernel_model.linux.errno import ENOMEM
from sim.macros import load, store

if TYPE_CHECKING:
    from kernel_model.bpf.prog import BpfProg
    from kernel_model.kernel import Kernel

CONSERVATIVE_ARGS: Final = 5  # MAX_BPF_FUNC_REG_ARGS


async def dst_prog(prog: BpfProg) -> BpfProg | None:
    """The program that this one was loaded for, unless it has been attached."""
    return await load(prog.aux.dst_prog) if prog.aux.for_prog else None


async def target_facts(tgt_prog: BpfProg) -> TargetFacts:
    """What the rules ask about a program that another one is for."""
    aux = tgt_prog.aux
    return TargetFacts(
        tgt_prog.type,
        tgt_prog.expected_attach_type,
        aux.func_info,
        max(1, len(await load(aux.func))),
        aux.unreliable,
    )


async def bpf_trampoline_compute_key(tgt_prog: BpfProg, btf_id: int) -> TrampolineKey:
    """The key of a function of a program."""
    return TrampolineKey(await load(tgt_prog.aux.id), btf_id)


async def target_function(tgt_prog: BpfProg, btf_id: int) -> TargetInfo:
    """The function of a program, which has it."""
    number = btf_id - 1
    funcs = await load(tgt_prog.aux.func)
    image = await load((funcs[number] if funcs else tgt_prog).bpf_func)
    assert image is not None
    conservative = number > 0 or number in tgt_prog.aux.unreliable
    return TargetInfo(image, CONSERVATIVE_ARGS if conservative else 1)


async def check_new_target(prog: BpfProg, tgt_prog: BpfProg, btf_id: int) -> int:
    """bpf_check_attach_target() for another target than at load: 0 or -errno."""
    facts = prog.facts._replace(attach_btf_id=btf_id, target=await target_facts(tgt_prog))
    try:
        bpf_check_attach_target(facts)
    except Refused as refused:
        return -refused.errno
    return 0


async def get_dst_trampoline(kernel: Kernel, prog: BpfProg) -> int:
    """The part of check_attach_btf_id() that takes the trampoline: 0 or -ENOMEM."""
    aux = prog.aux
    if prog.type not in (BPF_PROG_TYPE_TRACING, BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_EXT):
        return 0
    tgt_prog = await dst_prog(prog)
    if tgt_prog is not None:
        aux.saved_dst = tgt_prog.type, tgt_prog.expected_attach_type
        key = await bpf_trampoline_compute_key(tgt_prog, aux.attach_btf_id)
        target = await target_function(tgt_prog, aux.attach_btf_id)
    else:
        function = kernel.subsystem(Ftrace).by_name.get(aux.attach_func_name)
        if function is None or prog.expected_attach_type not in TRAMPOLINES:
            return 0
        key, target = TrampolineKey(0, function.name), TargetInfo(function, function.nr_args)
    tr = await bpf_trampoline_get(kernel, key, target)
    if tr is None:
        return -ENOMEM
    await store(aux.dst_trampoline, tr)
    return 0


async def put_dst_trampoline(kernel: Kernel, prog: BpfProg) -> None:
    """A program that has never been attached gives up its trampoline."""
    tr = await load(prog.aux.dst_trampoline)
    if isinstance(tr, BpfTrampoline):
        await bpf_trampoline_put(kernel, tr)
