"""Loading programs that use one map of each kind."""

from typing import Any

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import (
    BPF_F_INNER_MAP,
    BPF_F_NO_PREALLOC,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_MAP_CREATE,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    MapCreateAttr,
)
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.uapi import bpf, bpf_create_map, bpf_create_map_in_map
from tests.kernel_model.bpf.running import run

# Looks a key of zeroes up.
FETCH = "r2 = r10\nr2 += -8\n*(u64 *)(r10 -8) = 0\nr1 = map[{}]\ncall bpf_map_lookup_elem"


# And goes on, if there is such a value, with r7 pointing to it and r1 to its lock.
LOCK = f"""
    r6 = r1
    {FETCH.format("locked")}
    if r0 == 0 goto out
    r7 = r0
    r1 = r0
    r1 += 8
"""


async def make_maps(kernel: Kernel) -> dict[str, int]:
    """One map of each kind that a rule is about."""
    maps = {
        "array": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 3),
        "one": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1),
        "hash": await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 8, 3),
        "alloc": await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 8, 3, BPF_F_NO_PREALLOC),
        "percpu": await bpf_create_map(kernel, BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 3),
        "rdonly": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 3, BPF_F_RDONLY_PROG),
        "wronly": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 3, BPF_F_WRONLY_PROG),
        "resized": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 3, BPF_F_INNER_MAP),
    }
    locked = MapCreateAttr(
        map_type=BPF_MAP_TYPE_ARRAY, key_size=4, value_size=16, max_entries=2, spin_lock_off=8
    )
    maps["locked"] = await bpf(kernel, BPF_MAP_CREATE, locked)
    for outer, outer_type, inner in (
        ("outer", BPF_MAP_TYPE_ARRAY_OF_MAPS, "array"),
        ("outer_hash", BPF_MAP_TYPE_HASH_OF_MAPS, "array"),
        ("outer_alloc", BPF_MAP_TYPE_ARRAY_OF_MAPS, "alloc"),
        ("outer_of_hashes", BPF_MAP_TYPE_ARRAY_OF_MAPS, "hash"),
        ("outer_of_resized", BPF_MAP_TYPE_ARRAY_OF_MAPS, "resized"),
    ):
        maps[outer] = await bpf_create_map_in_map(kernel, outer_type, 4, maps[inner], 2)
    return maps


def attempt(
    code: str,
    prog_type: int = BPF_PROG_TYPE_RAW_TRACEPOINT,
    version: str = "5.10",
    **attributes: Any,
) -> tuple[int, str]:
    """0 or the errno of loading a program, and the verifier's log."""

    async def main(kernel: Kernel) -> tuple[int, str]:
        log = bytearray()
        insns = assemble(code, await make_maps(kernel))
        fd = await bpf_load_program(kernel, prog_type, insns, log_buf=log, **attributes)
        return min(fd, 0), log.decode()

    errno, log = run(main, version)
    return -errno, log
