"""How many tail calls can one run of a program make?

Covers: the tail-call counter: chains within one function, through another function, and a function
that is called more than once.
Scenario: a program counts its runs in a map and tail-calls itself, directly; from its main function
(chain), from another function that it calls once (subprog), or from one that it calls twice (tree).
Expect: 33 tail calls succeed, and no more; so the program counts 34 runs.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall
from kernel_model.uapi import bpf_create_map, bpf_map_lookup_elem, bpf_map_update_elem, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import outcome

Shape = Literal["chain", "subprog", "tree"]

COUNT = """
    r6 = r1
    r1 = map_value[runs]
    r2 = 1
    lock *(u32 *)(r1 +0) += r2
    r1 = r6
"""
TAIL = """
    r2 = map[progs]
    r3 = 0
    call bpf_tail_call
    r0 = 0
    exit
"""
CODE: dict[Shape, str] = {
    "chain": COUNT + TAIL,
    "subprog": f"{COUNT}call next\nexit\nnext:{TAIL}",
    "tree": f"{COUNT}call next\nr1 = r6\ncall next\nexit\nnext:{TAIL}",
}


@kernel_workload(cpus=1)
async def tailcall_counter(kernel: Kernel, *, shape: Shape = "chain", depth: int = 0) -> None:
    maps = {
        "progs": checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)),
        "runs": checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)),
    }
    tp = tracepoint(kernel, "sys_enter")
    code = CODE[shape]
    if depth:
        code = f"r0 = 0\n*(u8 *)(r10 -{depth}) = r0\n{code}"
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    insns = assemble(code, maps)
    fd = checked("program", await bpf_load_program(kernel, prog_type, insns, name="again"))
    checked("install", await bpf_map_update_elem(kernel, maps["progs"], u32(0), u32(fd)))
    checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", fd))
    async with syscall(kernel, "sys_enter"):
        await trace(kernel, tp)
    runs = await bpf_map_lookup_elem(kernel, maps["runs"], u32(0))
    assert isinstance(runs, bytes)
    await outcome(int.from_bytes(runs, "little"))
