"""bpf(2): each error of the commands on maps, and which one comes first.

A case spoils a call that would succeed in several ways; the error is that of the first check. As
the spoiling that is checked first is left out, the next one shows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kernel_model.bpf.attr import (
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_F_NUMA_NODE,
    BPF_F_RDONLY,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY,
    BPF_MAP_CREATE,
    BPF_MAP_DELETE_ELEM,
    BPF_MAP_FREEZE,
    BPF_MAP_GET_NEXT_KEY,
    BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_UPDATE_ELEM,
    BpfAttr,
    MapCreateAttr,
    MapElemAttr,
)
from kernel_model.bpf.capability import drop_capabilities
from kernel_model.bpf.syscall import Sysctls
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import (
    E2BIG,
    EACCES,
    EBADF,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EMFILE,
    ENOENT,
    ENOMEM,
    ENOTSUPP,
    EPERM,
)
from kernel_model.linux.file import NR_OPEN
from kernel_model.uapi import bpf, bpf_map_freeze, bpf_map_update_elem, close, u32
from sim.errors import MisuseError
from sim.macros import store
from tests.kernel_model.bpf.maps import explore, live_maps, other_file, run

PAGE_SIZE = 4096
CREATE = MapCreateAttr(map_type=BPF_MAP_TYPE_HASH, key_size=4, value_size=8, max_entries=1)

#: Things that spoil a call, in the order of the checks, and their errors.
Spoilings = list[tuple[dict[str, Any], int]]


def shortened(spoilings: Spoilings) -> list[Spoilings]:
    """All of them, all but the first, ..., the last one."""
    return [spoilings[i:] for i in range(len(spoilings))]


def spoil(attr: Any, spoilings: Spoilings) -> tuple[Any, int]:
    """The attributes spoilt in all these ways, of which the first one counts, and its error."""
    for fields, _ in reversed(spoilings):
        attr = dataclasses.replace(attr, **fields)
    return attr, spoilings[0][1]


# -- before the command --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unprivileged", "attr", "cmd", "result"),
    [
        (True, None, 99, -EPERM),
        (False, None, 99, -EFAULT),
        (False, BpfAttr(attr_size=PAGE_SIZE + 1), 99, -E2BIG),
        (False, BpfAttr(attr_size=121, unknown_tail=True), 99, -E2BIG),
        (False, BpfAttr(attr_size=121), 99, -EINVAL),
        (False, BpfAttr(), 36, -EINVAL),
        (False, BpfAttr(), -1, -EINVAL),
        (False, dataclasses.replace(CREATE, unused_tail=True), BPF_MAP_CREATE, -EINVAL),
        (False, CREATE, BPF_MAP_CREATE, 0),
    ],
)
def test_prelude(unprivileged: bool, attr: BpfAttr | None, cmd: int, result: int) -> None:
    async def main(kernel: Kernel) -> int:
        if unprivileged:
            await store(kernel.subsystem(Sysctls).unprivileged_bpf_disabled, 1)
            drop_capabilities(kernel)
        return await bpf(kernel, cmd, attr)

    assert run(main) == result


def test_the_unprivileged_may_use_maps_unless_the_administrator_forbids_it() -> None:
    async def main(kernel: Kernel) -> int:
        drop_capabilities(kernel)
        return await bpf(kernel, BPF_MAP_CREATE, CREATE)

    assert run(main) == 0


@pytest.mark.parametrize(
    ("cmd", "attr", "text"),
    [
        (BPF_MAP_CREATE, MapElemAttr(map_fd=0), "takes MapCreateAttr"),
        (21, MapElemAttr(map_fd=0), "command 21"),
        (BPF_MAP_CREATE, dataclasses.replace(CREATE, map_type=9), "maps of type 9"),
    ],
)
def test_what_is_not_modelled_is_misuse(cmd: int, attr: BpfAttr, text: str) -> None:
    async def main(kernel: Kernel) -> None:
        await bpf(kernel, cmd, attr)

    with pytest.raises(MisuseError, match=text):
        run(main)


# -- BPF_MAP_CREATE ------------------------------------------------------------------------------

CREATION: Spoilings = [
    ({"unused_tail": True}, -EINVAL),
    ({"map_flags": BPF_F_RDONLY | BPF_F_WRONLY}, -EINVAL),
    ({"map_flags": BPF_F_NUMA_NODE, "numa_node": 1}, -EINVAL),
    ({"map_type": 0}, -EINVAL),
    ({"key_size": 513}, -E2BIG),
    ({"map_name": "a-b"}, -EINVAL),
    ({"spin_lock_off": 5}, -EFAULT),
]


@pytest.mark.parametrize("spoilings", shortened(CREATION), ids=lambda s: str(s[0][0]))
def test_creation(spoilings: Spoilings) -> None:
    kernels: list[Kernel] = []

    async def main(kernel: Kernel) -> int:
        kernels.append(kernel)
        return await bpf(kernel, BPF_MAP_CREATE, attr)

    attr, error = spoil(CREATE, spoilings)
    assert run(main) == error
    assert live_maps(kernels[0]) == []


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"map_type": 29}, -EINVAL),
        ({"map_name": "fifteen.letters"}, 0),
        ({"map_name": "sixteen_letters_"}, -EINVAL),
        ({"spin_lock_off": 4}, 0),
        ({"spin_lock_off": 4, "map_flags": BPF_F_RDONLY_PROG}, -EACCES),
        ({"spin_lock_off": 4, "map_type": BPF_MAP_TYPE_PERCPU_ARRAY}, -ENOTSUPP),
        ({"inner_map_fd": 9, "map_type": BPF_MAP_TYPE_ARRAY_OF_MAPS, "value_size": 4}, -EBADF),
    ],
)
def test_other_errors_of_creation(fields: dict[str, Any], result: int) -> None:
    async def main(kernel: Kernel) -> int:
        return await bpf(kernel, BPF_MAP_CREATE, dataclasses.replace(CREATE, **fields))

    assert run(main) == result


def test_no_descriptor_is_left() -> None:
    kernels: list[Kernel] = []

    async def main(kernel: Kernel) -> int:
        kernels.append(kernel)
        for fd in range(NR_OPEN):
            assert await bpf(kernel, BPF_MAP_CREATE, CREATE) == fd
        error = await bpf(kernel, BPF_MAP_CREATE, CREATE)
        for fd in range(NR_OPEN):
            await close(kernel, fd)
        return error

    assert run(main) == -EMFILE
    assert live_maps(kernels[0]) == []


# -- commands on elements ------------------------------------------------------------------------

NO_FILE, NO_MAP, READ_ONLY, WRITE_ONLY = 31, 30, 29, 28  # stand-ins for descriptors

KEY_FAULT: Spoilings = [({"key": None}, -EFAULT)]
ANY_FILE: Spoilings = [({"map_fd": NO_FILE}, -EBADF), ({"map_fd": NO_MAP}, -EINVAL)]
NO_WRITE: Spoilings = [*ANY_FILE, ({"map_fd": READ_ONLY}, -EPERM)]
NO_READ: Spoilings = [*ANY_FILE, ({"map_fd": WRITE_ONLY}, -EPERM)]
UNUSED: Spoilings = [({"unused_tail": True}, -EINVAL)]

COMMANDS: dict[int, Spoilings] = {
    BPF_MAP_LOOKUP_ELEM: [
        *UNUSED,
        ({"flags": BPF_EXIST}, -EINVAL),
        *NO_READ,
        ({"flags": BPF_F_LOCK}, -EINVAL),
        *KEY_FAULT,
        ({"key": u32(7)}, -ENOENT),
        ({"value": None}, -EFAULT),
    ],
    BPF_MAP_UPDATE_ELEM: [
        *UNUSED,
        *NO_WRITE,
        ({"flags": BPF_F_LOCK}, -EINVAL),
        *KEY_FAULT,
        ({"value": b"short"}, -EFAULT),
        ({"flags": BPF_EXIST + 1}, -EINVAL),
        ({"key": u32(7)}, -E2BIG),
    ],
    BPF_MAP_DELETE_ELEM: [
        *UNUSED,
        *NO_WRITE,
        *KEY_FAULT,
        ({"key": u32(7)}, -ENOENT),
    ],
    BPF_MAP_GET_NEXT_KEY: [
        *UNUSED,
        *NO_READ,
        ({"key": b"bad"}, -EFAULT),
        ({"key": u32(0)}, -ENOENT),
        ({"value": None, "key": None}, -EFAULT),
    ],
}


async def a_map_and_other_files(kernel: Kernel) -> dict[int, int]:
    """A map with key 0, and what the stand-ins for descriptors stand for."""
    fds = {NO_FILE: NO_FILE, NO_MAP: await other_file(kernel)}
    for stand_in, flag in ((READ_ONLY, BPF_F_RDONLY), (WRITE_ONLY, BPF_F_WRONLY)):
        attr = dataclasses.replace(CREATE, map_flags=flag)
        fds[stand_in] = await bpf(kernel, BPF_MAP_CREATE, attr)
    fds[0] = await bpf(kernel, BPF_MAP_CREATE, CREATE)
    assert await bpf_map_update_elem(kernel, fds[0], u32(0), bytes(8)) == 0
    return fds


@pytest.mark.parametrize(
    ("cmd", "spoilings"),
    [(cmd, some) for cmd, spoilings in COMMANDS.items() for some in shortened(spoilings)],
    ids=lambda case: str(case[0][0]) if isinstance(case, list) else str(case),
)
def test_command(cmd: int, spoilings: Spoilings) -> None:
    async def main(kernel: Kernel) -> int:
        fds = await a_map_and_other_files(kernel)
        value = None if cmd == BPF_MAP_DELETE_ELEM else bytearray(8)
        attr, error = spoil(MapElemAttr(map_fd=0, key=u32(0), value=value), spoilings)
        result = await bpf(kernel, cmd, dataclasses.replace(attr, map_fd=fds[attr.map_fd]))
        assert result == error
        return 0

    run(main)


@pytest.mark.parametrize("cmd", COMMANDS)
def test_command_succeeds_unless_it_is_spoilt(cmd: int) -> None:
    async def main(kernel: Kernel) -> int:
        fds = await a_map_and_other_files(kernel)
        key = None if cmd == BPF_MAP_GET_NEXT_KEY else u32(0)
        value = None if cmd == BPF_MAP_DELETE_ELEM else bytearray(8)
        return await bpf(kernel, cmd, MapElemAttr(map_fd=fds[0], key=key, value=value))

    assert run(main) == 0


@pytest.mark.parametrize(
    ("cmd", "fields"),
    [
        (BPF_MAP_DELETE_ELEM, {"value": bytes(8)}),
        (BPF_MAP_DELETE_ELEM, {"flags": 1}),
        (BPF_MAP_GET_NEXT_KEY, {"flags": 1}),
        (BPF_MAP_FREEZE, {"key": u32(0)}),
        (BPF_MAP_FREEZE, {"flags": 1}),
    ],
)
def test_fields_of_other_commands_are_refused(cmd: int, fields: dict[str, Any]) -> None:
    async def main(kernel: Kernel) -> int:
        return await bpf(kernel, cmd, dataclasses.replace(MapElemAttr(map_fd=NO_FILE), **fields))

    assert run(main) == -EINVAL


def test_error_of_an_update_is_that_of_the_map() -> None:
    async def main(kernel: Kernel) -> int:
        fds = await a_map_and_other_files(kernel)
        return await bpf_map_update_elem(kernel, fds[0], u32(0), bytes(8), 1)

    assert run(main) == -EEXIST


# -- BPF_MAP_FREEZE ------------------------------------------------------------------------------


def test_frozen_map_is_written_no_more() -> None:
    async def main(kernel: Kernel) -> None:
        fds = await a_map_and_other_files(kernel)
        assert await bpf_map_freeze(kernel, NO_FILE) == -EBADF
        assert await bpf_map_freeze(kernel, fds[NO_MAP]) == -EINVAL
        assert await bpf_map_freeze(kernel, fds[0]) == 0
        assert await bpf_map_freeze(kernel, fds[0]) == -EBUSY
        assert await bpf_map_update_elem(kernel, fds[0], u32(0), bytes(8)) == -EPERM
        attr = MapElemAttr(map_fd=fds[0], key=u32(0))
        assert await bpf(kernel, BPF_MAP_DELETE_ELEM, attr) == -EPERM
        attr = MapElemAttr(map_fd=fds[0], key=u32(0), value=bytearray())
        assert await bpf(kernel, BPF_MAP_LOOKUP_ELEM, attr) == 0
        drop_capabilities(kernel)
        assert await bpf_map_freeze(kernel, fds[0]) == -EBUSY
        assert await bpf_map_freeze(kernel, fds[READ_ONLY]) == -EPERM

    run(main)


# -- failures by choice --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cmd", "results"),
    [
        (BPF_MAP_UPDATE_ELEM, {0, -ENOMEM, -EFAULT}),
        (BPF_MAP_LOOKUP_ELEM, {0, -ENOMEM, -EFAULT}),
        (BPF_MAP_DELETE_ELEM, {-EINVAL, -ENOMEM, -EFAULT}),
        (BPF_MAP_GET_NEXT_KEY, {-ENOENT, -ENOMEM, -EFAULT}),
    ],
)
def test_memory_and_copies_may_fail(cmd: int, results: set[int]) -> None:
    async def main(kernel: Kernel) -> int | None:
        attr = MapCreateAttr(map_type=BPF_MAP_TYPE_ARRAY, key_size=4, value_size=8, max_entries=1)
        fd = await bpf(kernel, BPF_MAP_CREATE, attr)
        if fd < 0:
            return None
        value = None if cmd == BPF_MAP_DELETE_ELEM else bytearray(8)
        result = await bpf(kernel, cmd, MapElemAttr(map_fd=fd, key=u32(0), value=value))
        await close(kernel, fd)
        return result

    found = explore(main, faults=frozenset({"slab", "usercopy"}))

    assert found.outcomes == results | {None}
    assert not found.wrong
