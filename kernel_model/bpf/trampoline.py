"""kernel/bpf/trampoline.c (v5.10): trampolines: who is attached to a function, and the images

One page of two halves, of which the one that is not in use is written anew by every change
(`bpf_trampoline_update`), after the grace periods that are to see everybody out of it. From
e21aa341785c on every change makes an image of its own, which is freed when nobody is in it.

The function is one of the kernel's or one of a program's. Instead of being called around by a
trampoline, a function of a program can be replaced by an extension.

Not modelled: symbols of trampolines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, final

from kernel_model.bpf.prog_attr import (
    BPF_LSM_MAC,
    BPF_MODIFY_RETURN,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.bpf.trampoline_entry import (
    modify_fentry,
    poke_extension,
    register_fentry,
    unregister_fentry,
)
from kernel_model.bpf.trampoline_image import (
    HALF,
    Progs,
    TrampolineImage,
    __bpf_tramp_exit,
    __bpf_tramp_image_free,
    arch_prepare_bpf_trampoline,
    write_half,
)
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import E2BIG, EBUSY, ENOMEM
from kernel_model.linux.mutex import mutex
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.rcu.sync import synchronize_rcu_mult
from kernel_model.rcu.tasks import call_rcu_tasks, synchronize_rcu_tasks
from kernel_model.rcu.tasks_trace import call_rcu_tasks_trace
from sim.cells import Cell, Struct, cell
from sim.macros import WRITE_ONCE, load, note, store
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.bpf.prog import BpfProg
    from kernel_model.kernel import Kernel
    from kernel_model.x86.text import Image

BPF_MAX_TRAMP_PROGS: Final = 40
VOID_HOOKS: Final = frozenset(
    f"bpf_lsm_{name}"
    for name in """
    bprm_committing_creds bprm_committed_creds sb_free_security inode_free_security
    inode_post_setxattr inode_getsecid inode_invalidate_secctx d_instantiate file_free_security
    file_set_fowner task_free task_getsecid task_to_inode cred_free cred_transfer cred_getsecid
    ipc_getsecid msg_msg_free_security msg_queue_free_security shm_free_security sem_free_security
    sk_free_security sk_clone_security sk_getsecid sock_graft inet_csk_clone inet_conn_established
    secmark_refcount_inc secmark_refcount_dec req_classify_flow tun_dev_free_security
    bpf_map_free_security bpf_prog_free_security
    """.split()
)
"""The hooks of security modules that return nothing: a program runs behind them."""
FENTRY, FEXIT, MODIFY_RETURN, REPLACE = 0, 1, 2, 3


class TrampolineKey(NamedTuple):
    """Which function: 0 and its name for one of the kernel's, else the program's id and BTF's."""

    prog_id: int
    btf_id: str | int


class TargetInfo(NamedTuple):
    """`struct bpf_attach_target_info`: the function, and how many arguments it takes."""

    tgt_addr: Image
    nr_args: int


@final
class BpfTrampoline(Struct):
    """`struct bpf_trampoline`.

    refcnt    links, and programs that are loaded for the function and not attached
    extension_prog  what replaces the function; then it has no programs of the other kinds
    progs     per kind, the latest first
    selector  how often the image has changed; its lowest bit: the half that is written next
    image     the page (with e21aa341785c: the image in use)
    """

    KIND = "bpf_trampoline"

    refcnt: Cell[int] = cell(1)
    mutex: Cell[Thread | None] = cell(None)
    fentry: Cell[Progs] = cell(())
    fexit: Cell[Progs] = cell(())
    modify_return: Cell[Progs] = cell(())
    selector: Cell[int] = cell(0)
    image: Cell[TrampolineImage | None] = cell(None)
    extension_prog: Cell[BpfProg | None] = cell(None)

    def __init__(self, key: TrampolineKey, target: TargetInfo) -> None:
        self.key: Final = key
        self.func: Final = target.tgt_addr
        self.nr_args: Final = target.nr_args
        self.progs_hlist: Final = (self.fentry, self.fexit, self.modify_return)


@final
class Trampolines(Struct):
    """The table, and its lock."""

    KIND = "trampolines"

    trampoline_mutex: Cell[Thread | None] = cell(None)
    table: Cell[tuple[BpfTrampoline, ...]] = cell(())


async def _alloc_image(kernel: Kernel, tr: BpfTrampoline) -> TrampolineImage | None:
    return await kzalloc(kernel, TrampolineImage, kernel, tr.func.name)


@kernel_function
async def bpf_trampoline_get(
    kernel: Kernel, key: TrampolineKey, target: TargetInfo
) -> BpfTrampoline | None:
    """The trampoline of a function, made if need be; None: memory is short."""
    all_of_them = kernel.subsystem(Trampolines)
    async with mutex(all_of_them.trampoline_mutex):
        table = await load(all_of_them.table)
        for tr in table:
            if tr.key == key:
                await store(tr.refcnt, await load(tr.refcnt) + 1)
                return tr
        made = await kzalloc(kernel, BpfTrampoline, key, target)
        if made is None:
            return None
        if not kernel.has(Fix.FEXIT_IMAGE):
            image = await _alloc_image(kernel, made)
            if image is None:
                await kfree(kernel, made)
                return None
            await store(made.image, image)
        await store(all_of_them.table, (*table, made))
        return made


@kernel_function
async def bpf_trampoline_put(kernel: Kernel, tr: BpfTrampoline) -> None:
    all_of_them = kernel.subsystem(Trampolines)
    async with mutex(all_of_them.trampoline_mutex):
        left = await load(tr.refcnt) - 1
        await store(tr.refcnt, left)
        if left:
            return
        if await load(tr.fentry) or await load(tr.fexit):
            await note("WARN", "bpf_trampoline_put: programs are attached")
            return
        if not kernel.has(Fix.FEXIT_IMAGE):
            if kernel.has(Fix.HALF_PAGE_WAIT) and not kernel.has(Fix.TRAMP_FREE_NO_GP):
                await synchronize_rcu_tasks(kernel)
            await kfree(kernel, await load(tr.image), "bpf_jit_free_exec")
        table = await load(all_of_them.table)
        await store(all_of_them.table, tuple(other for other in table if other is not tr))
        await kfree(kernel, tr)


# -- the image -----------------------------------------------------------------------------------


@kernel_function
async def bpf_trampoline_update(kernel: Kernel, tr: BpfTrampoline) -> int:
    """Make the image agree with the programs; the caller holds tr->mutex."""
    progs = [await load(place) for place in tr.progs_hlist]
    if kernel.has(Fix.FEXIT_IMAGE):
        return await _update_image(kernel, tr, progs)
    image = await load(tr.image)
    assert image is not None
    selector = await load(tr.selector)
    old_half, new_half = (selector + 1) & 1, selector & 1
    old_addr = image.addr + old_half * HALF
    if not any(progs):
        error = await unregister_fentry(kernel, tr.func, old_addr)
        await store(tr.selector, 0)
        return error
    await _wait_for_half(kernel)
    code = await arch_prepare_bpf_trampoline(
        tr.func, tr.nr_args, progs[FENTRY], progs[MODIFY_RETURN], progs[FEXIT]
    )
    if isinstance(code, int):
        return code
    await write_half(image, new_half, code)
    error = await _switch(kernel, tr, old_addr if selector else 0, image.addr + new_half * HALF)
    if not error:
        await store(tr.selector, selector + 1)
    return error


async def _wait_for_half(kernel: Kernel) -> None:
    """See everybody out of the half that is about to be written."""
    if not kernel.has(Fix.HALF_PAGE_WAIT):
        return
    if not kernel.has(Fix.SLEEPABLE):
        await synchronize_rcu_tasks(kernel)
        return
    flavours = []
    if not kernel.has(Fix.TRAMP_NO_TASKS):
        flavours.append(call_rcu_tasks)
    if not kernel.has(Fix.TRAMP_NO_TRACE):
        flavours.append(call_rcu_tasks_trace)
    await synchronize_rcu_mult(kernel, *flavours)


async def _switch(kernel: Kernel, tr: BpfTrampoline, old: int, new: int) -> int:
    if old:
        return await modify_fentry(kernel, tr.func, old, new)
    return await register_fentry(kernel, tr.func, new)


async def _update_image(kernel: Kernel, tr: BpfTrampoline, progs: list[Progs]) -> int:
    """As e21aa341785c has it: a new image, and the old one is retired."""
    old = await load(tr.image)
    if not any(progs):
        assert old is not None
        error = await unregister_fentry(kernel, tr.func, old.addr)
        await bpf_tramp_image_put(kernel, old)
        await store(tr.image, None)
        await store(tr.selector, 0)
        return error
    image = await _alloc_image(kernel, tr)
    if image is None:
        return -ENOMEM
    code = await arch_prepare_bpf_trampoline(
        tr.func, tr.nr_args, progs[FENTRY], progs[MODIFY_RETURN], progs[FEXIT]
    )
    if isinstance(code, int):
        await kfree(kernel, image, "bpf_jit_free_exec")
        return code
    await write_half(image, 0, code)
    error = await _switch(kernel, tr, 0 if old is None else old.addr, image.addr)
    if error:
        await kfree(kernel, image, "bpf_jit_free_exec")
        return error
    if old is not None:
        await bpf_tramp_image_put(kernel, old)
    await store(tr.image, image)
    await store(tr.selector, await load(tr.selector) + 1)
    return 0


@kernel_function
async def bpf_tramp_image_put(kernel: Kernel, im: TrampolineImage) -> None:
    """Nobody enters the image any more: free it when all have left."""
    code = await load(im.half0)
    assert code is not None
    if code.call_orig:
        await WRITE_ONCE(im.skip, True)  # a jump over the programs behind the function
        if kernel.preempt == "full":
            await call_rcu_tasks(kernel, __bpf_tramp_image_put_rcu_tasks, kernel, im)
        else:
            await __bpf_tramp_exit(kernel, im)
        return
    await call_rcu_tasks_trace(kernel, __bpf_tramp_image_put_rcu_tasks, kernel, im)


async def __bpf_tramp_image_put_rcu_tasks(kernel: Kernel, im: TrampolineImage) -> None:
    code = await load(im.half0)
    assert code is not None
    if code.call_orig:
        await __bpf_tramp_exit(kernel, im)  # percpu_ref_kill()
    else:
        await call_rcu_tasks(kernel, __bpf_tramp_image_free, kernel, im)


# -- programs ------------------------------------------------------------------------------------


def _kind(prog: BpfProg) -> int:
    """bpf_attach_type_to_tramp()"""
    if prog.expected_attach_type == BPF_TRACE_FENTRY:
        return FENTRY
    if prog.expected_attach_type == BPF_TRACE_FEXIT:
        return FEXIT
    if prog.expected_attach_type == BPF_MODIFY_RETURN:
        return MODIFY_RETURN
    if prog.expected_attach_type == BPF_LSM_MAC:
        return FEXIT if prog.aux.attach_func_name in VOID_HOOKS else MODIFY_RETURN
    return REPLACE


@kernel_function
async def bpf_trampoline_link_prog(kernel: Kernel, prog: BpfProg, tr: BpfTrampoline) -> int:
    kind = _kind(prog)
    async with mutex(tr.mutex):
        if await load(tr.extension_prog) is not None:
            return -EBUSY
        count = len(await load(tr.fentry)) + len(await load(tr.fexit))
        if kind == REPLACE:
            if count:
                return -EBUSY
            await store(tr.extension_prog, prog)
            return await poke_extension(kernel, tr.func, None, await load(prog.bpf_func))
        place = tr.progs_hlist[kind]
        if count >= BPF_MAX_TRAMP_PROGS:
            return -E2BIG
        progs = await load(place)
        if prog in progs:
            return -EBUSY
        await store(place, (prog, *progs))
        error = await bpf_trampoline_update(kernel, tr)
        if error:
            await store(place, progs)
        return error


@kernel_function
async def bpf_trampoline_unlink_prog(kernel: Kernel, prog: BpfProg, tr: BpfTrampoline) -> int:
    kind = _kind(prog)
    async with mutex(tr.mutex):
        if kind == REPLACE:
            error = await poke_extension(kernel, tr.func, await load(prog.bpf_func), None)
            await store(tr.extension_prog, None)
            return error
        place = tr.progs_hlist[kind]
        progs = await load(place)
        await store(place, tuple(other for other in progs if other is not prog))
        return await bpf_trampoline_update(kernel, tr)
