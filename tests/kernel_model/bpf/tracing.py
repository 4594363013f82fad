"""Programs that trace or replace functions of other programs."""

from __future__ import annotations

from typing import Any

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY
from kernel_model.bpf.prog import BpfProg, bpf_load_program, bpf_prog_get, bpf_prog_put
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_EXT, BPF_PROG_TYPE_TRACING
from kernel_model.bpf.trampoline import Trampolines
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall
from kernel_model.uapi import bpf_create_map, bpf_map_lookup_elem, u32
from kernel_model.x86.text import Text
from tests.kernel_model.bpf.running import explore, load

TASKS = frozenset({"TASKS_RCU"})

# Returns 41, of which 40 come from its second function.
TARGET = "call next\nr0 += 1\nexit\nnext: r0 = 40\nexit"
MAIN, NEXT = 1, 2

# Appends its number to the digits in the map: the order in which programs ran can be read there.
LOG = """
    r6 = r1
    r1 = map_value[log]
    r2 = *(u64 *)(r1 +0)
    r2 *= 10
    r2 += {number}
    *(u64 *)(r1 +0) = r2
"""


def watch(number: int, result: int = 0) -> str:
    """A program that logs its number."""
    return f"{LOG.format(number=number)}r0 = {result}\nexit"


def alone(main: Any, version: str = "5.10", **options: Any) -> Any:
    """What `main` returns if threads run one after the other; nothing may go wrong."""
    explored = explore(main, version, limit=1, config=TASKS, **options)
    assert list(explored.wrong) == []

    return explored.returned[0]


async def new_log(kernel: Kernel) -> int:
    return await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)


async def logged(kernel: Kernel, log: int) -> int:
    value = await bpf_map_lookup_elem(kernel, log, u32(0))
    assert isinstance(value, bytes)
    return int.from_bytes(value, "little")


async def load_target(kernel: Kernel, code: str = TARGET) -> int:
    """The descriptor of a program that others are for; not 0, which stands for no target."""
    await new_log(kernel)
    return await load(kernel, code)


async def load_tracing(
    kernel: Kernel, kind: int, code: str, target: int, number: int, log: int = -1
) -> int:
    """The descriptor of a program for a function of the program `target`."""
    return await load(
        kernel,
        code,
        BPF_PROG_TYPE_TRACING,
        {"log": log},
        expected_attach_type=kind,
        attach_prog_fd=target,
        attach_btf_id=number,
    )


async def load_extension(
    kernel: Kernel, code: str, target: int, number: int, maps: dict[str, int] | None = None
) -> int:
    """The descriptor of an extension, or -errno."""
    return await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_EXT,
        assemble(code, maps or {}),
        name="extension",
        attach_prog_fd=target,
        attach_btf_id=number,
    )


async def prog_of(kernel: Kernel, fd: int) -> BpfProg:
    """The program of a descriptor, without a reference."""
    async with syscall(kernel):
        prog = await bpf_prog_get(kernel, fd)
        assert isinstance(prog, BpfProg)
        await bpf_prog_put(kernel, prog)
    return prog


def entries(prog: BpfProg) -> list[Text]:
    """What the entry sites of the functions of a program contain."""
    images = [func.bpf_func.value for func in prog.aux.func.value or (prog,)]
    return [image.sites[0].mem.value for image in images if image is not None]


def trampolines(kernel: Kernel) -> int:
    """How many there are."""
    return len(kernel.subsystem(Trampolines).table.value)
