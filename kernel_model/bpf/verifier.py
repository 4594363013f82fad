"""kernel/bpf/verifier.c (v5.10): whether a program may be loaded, and what it is rewritten to

Load-time checks that matter for this model, and not the full verifier. What is there, in order:
the structure (`kernel_model.bpf.check`), what a tracing program is attached to and the maps
(`kernel_model.bpf.prog_types`), and a light walk of all paths (`kernel_model.bpf.do_check`); then
calls of map helpers are inlined or patched (`kernel_model.bpf.fixup`). What the light walk cannot
know, an execution finds out.

The answer for one bytecode is remembered: it depends on nothing but the instructions and facts
about the program and the maps.

A program that Linux takes and the model cannot run (packet access, helpers that nobody wrote) is
no refused program but a MisuseError.

Not modelled: most of the verifier, see `kernel_model.bpf.do_check`; of several faults of a program
the one that is reported may be another one than the kernel's; the memory that verification takes;
programs without CAP_BPF; that the kernel also warns in its own log of tracing programs with maps
that allocate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, final

from kernel_model.bpf.arraymap import BpfArray
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY
from kernel_model.bpf.check import check_program
from kernel_model.bpf.core import BpfCall, BpfText, translated
from kernel_model.bpf.disasm import print_bpf_insn
from kernel_model.bpf.do_check import do_check
from kernel_model.bpf.fixup import FIRST_KERNEL_CALL, KernelCall, PokeFacts, fixup_bpf_calls
from kernel_model.bpf.helper_ids import BPF_FUNC_MAX_ID, func_id_name
from kernel_model.bpf.helpers import HELPERS, KERNEL_CALLS, MAP_OPS
from kernel_model.bpf.insn import (
    BPF_CLASS,
    BPF_LD,
    BPF_PSEUDO_BTF_ID,
    BPF_PSEUDO_MAP_VALUE,
    Insn,
    is_ld_imm64,
)
from kernel_model.bpf.map import BpfMap
from kernel_model.bpf.map_refs import __bpf_map_get, bpf_map_inc, bpf_map_put
from kernel_model.bpf.prog_attr import (
    BPF_COMPLEXITY_LIMIT_INSNS,
    BPF_MAX_VAR_OFF,
    MAX_USED_MAPS,
)
from kernel_model.bpf.prog_types import (
    check_attach_btf_id,
    check_map_prog_compatibility,
    known_helpers,
)
from kernel_model.bpf.translate import is_kernel_call
from kernel_model.bpf.verifier_state import Env, FunctionFacts, MapFacts, ProgFacts, Refused
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import E2BIG, EINVAL, ENOTSUPP
from kernel_model.linux.file import File, fdget, fput
from sim.errors import MisuseError

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a program: pure data.

    errno  0, or why it is refused
    log    what the verifier wrote
    insns  the rewritten program; a constant that stands for a map has its index in `used_maps`
    calls  the functions of the kernel that it may call, by the immediate of the call
    derefs  its loads of pointers to inner maps
    functions  of the rewritten program; pokes: its direct tail calls
    """

    errno: int
    log: str
    insns: tuple[Insn, ...] = ()
    calls: Mapping[int, BpfCall] = field(default_factory=dict)
    derefs: frozenset[int] = frozenset()
    functions: tuple[FunctionFacts, ...] = ()
    pokes: tuple[PokeFacts, ...] = ()


class Checked(NamedTuple):
    """A verdict, and the maps of the program if it is accepted: a reference to each."""

    verdict: Verdict
    used_maps: tuple[BpfMap, ...] = ()


@kernel_function
async def bpf_check(kernel: Kernel, prog: ProgFacts, insns: tuple[Insn, ...]) -> Checked:
    """Verify and rewrite a program."""
    prog = prog._replace(
        tail_call_subprogs=kernel.has(Fix.TAIL_CALL_SUBPROGS),
        exact_key=kernel.has(Fix.TAIL_CALL_KEY),
    )
    refusal = _check_structure(insns, prog)
    if refusal is not None:
        return Checked(refusal)
    resolving = _Resolving(kernel, prog, insns)
    try:
        await resolving.resolve_pseudo_ldimm64()
        verdict = verify(tuple(resolving.insns), prog, tuple(resolving.facts))
    except Refused as refused:
        verdict = Verdict(refused.errno, f"{refused.message}\n")
    if verdict.errno:
        for map in resolving.used_maps:
            await bpf_map_put(kernel, map)
        return Checked(_after(resolving.log, verdict))
    return Checked(_after(resolving.log, verdict), tuple(resolving.used_maps))


def _after(log: str, verdict: Verdict) -> Verdict:
    if not log:
        return verdict
    return replace(verdict, log=log + verdict.log)


@lru_cache(maxsize=256)
def _check_structure(insns: tuple[Insn, ...], prog: ProgFacts) -> Verdict | None:
    """What can be said before the maps are known; None: nothing is wrong."""
    _check_modelled(insns)
    described = prog.func_info or not prog.tail_call_subprogs
    rejection = check_program(insns, known_helpers(prog), func_info=described)
    if rejection is not None:
        return _refuse(insns, rejection.insn, rejection.errno, rejection.message)
    try:
        check_attach_btf_id(prog)
    except Refused as refused:
        return Verdict(refused.errno, f"{refused.message}\n" if refused.message else "")
    return None


def _check_modelled(insns: tuple[Insn, ...]) -> None:
    for insn in insns:
        what = ""
        if is_kernel_call(insn) and 0 < insn.imm < BPF_FUNC_MAX_ID and insn.imm not in HELPERS:
            what = f"the helper {func_id_name(insn.imm)}"
        elif is_ld_imm64(insn):
            what = "the address of a kernel variable" if insn.src == BPF_PSEUDO_BTF_ID else ""
        elif BPF_CLASS(insn.code) == BPF_LD and insn.code:
            what = "packet access"
        if what:
            raise MisuseError(
                f"{print_bpf_insn(insn)}: {what} is not modelled; helpers that are: "
                + ", ".join(func_id_name(number) for number in HELPERS)
            )


def _refuse(insns: tuple[Insn, ...], index: int, errno: int, message: str) -> Verdict:
    """A refusal with the instruction in question and the reason, as the log ends."""
    second = insns[index + 1] if index + 1 < len(insns) else None
    listed = print_bpf_insn(insns[index], second) if insns else ""
    return Verdict(errno, f"{index}: {listed}\n{message}\n")


@lru_cache(maxsize=256)
def verify(insns: tuple[Insn, ...], prog: ProgFacts, maps: tuple[MapFacts, ...]) -> Verdict:
    """Walk and rewrite a program whose structure and maps are in order."""
    env = Env(insns, prog, maps)
    try:
        do_check(env)
        rewritten = fixup_bpf_calls(env)
    except Refused as refused:
        return _refuse(insns, env.insn_idx, refused.errno, refused.message)
    log = f"processed {env.insn_processed} insns (limit {BPF_COMPLEXITY_LIMIT_INSNS})\n"
    return Verdict(
        0,
        log,
        rewritten.insns,
        kernel_calls(rewritten.calls),
        rewritten.derefs,
        rewritten.functions,
        rewritten.pokes,
    )


def kernel_calls(calls: tuple[KernelCall, ...]) -> Mapping[int, BpfCall]:
    """What a rewritten program may call: helpers, and the functions of the types of its maps."""
    found = {number: proto.call for number, proto in HELPERS.items()} | KERNEL_CALLS
    for imm, (name, helper) in enumerate(calls, start=FIRST_KERNEL_CALL):
        found[imm] = BpfCall(name, HELPERS[helper].call.nargs, MAP_OPS[helper])
    return found


def bpf_text(name: str, prog_type: int, checked: Checked) -> BpfText:
    """What runs: the rewritten program with its addresses resolved."""
    verdict = checked.verdict
    insns = verdict.insns
    addresses: dict[int, int] = {}
    for index, insn in enumerate(insns):
        if is_ld_imm64(insn) and insn.src:
            map = checked.used_maps[insn.imm]
            addresses[index] = map.addr
            if insn.src == BPF_PSEUDO_MAP_VALUE:
                assert isinstance(map, BpfArray)  # check_direct_value() saw to it
                addresses[index] = map.value.addr + insns[index + 1].imm
    return translated(name, insns, verdict.calls, addresses, verdict.derefs, prog_type)


# -- maps ----------------------------------------------------------------------------------------


def map_facts(map: BpfMap, index: int) -> MapFacts:
    """What verification asks about a map."""
    ops, meta = map.ops, map.inner_map_meta
    inlined = 0 if ops.map_gen_lookup is None else ops.map_gen_lookup(map)
    return MapFacts(
        map_index=index,
        map_type=map.map_type,
        key_size=map.key_size,
        value_size=map.value_size,
        map_flags=map.map_flags,
        spin_lock_off=map.spin_lock_off,
        lookup=ops.map_lookup_elem.__name__,
        update=ops.map_update_elem.__name__ if ops.map_update_elem else "",
        delete=ops.map_delete_elem.__name__,
        inlined=inlined if isinstance(inlined, int) else tuple(inlined),
        inner=None if meta is None else map_facts(meta, index),
        max_entries=map.max_entries,
        unpriv=not map.bypass_spec_v1,
    )


async def _map_of(kernel: Kernel, fd: int) -> tuple[File, BpfMap]:
    """A file, with a reference to it, and the map that it is."""
    file = await fdget(kernel, fd)
    map = await __bpf_map_get(kernel, file)
    if isinstance(map, int):
        raise Refused(-map, f"fd {fd} is not pointing to valid bpf_map")
    assert file is not None
    return file, map


@final
class _Resolving:
    """resolve_pseudo_ldimm64(): descriptors become maps.

    insns      the program, with the index of a map in place of its descriptor
    used_maps  the maps, a reference to each; `facts` about each
    log        warnings
    """

    def __init__(self, kernel: Kernel, prog: ProgFacts, insns: tuple[Insn, ...]) -> None:
        self.kernel: Final = kernel
        self.prog: Final = prog
        self.insns: Final = list(insns)
        self.used_maps: Final[list[BpfMap]] = []
        self.facts: Final[list[MapFacts]] = []
        self.log = ""

    async def resolve_pseudo_ldimm64(self) -> None:
        for index, insn in enumerate(self.insns):
            if not is_ld_imm64(insn) or not insn.src:
                continue
            file, map = await _map_of(self.kernel, insn.imm)
            try:
                at = await self._use(map, insn, self.insns[index + 1].imm)
            except Refused:
                await fput(self.kernel, file)
                raise
            await fput(self.kernel, file)
            self.insns[index] = Insn(insn.code, insn.dst, insn.src, insn.off, at)

    async def _use(self, map: BpfMap, insn: Insn, off: int) -> int:
        """The index of the map in `used_maps`."""
        known = map in self.used_maps
        at = self.used_maps.index(map) if known else len(self.used_maps)
        facts = self.facts[at] if known else map_facts(map, at)
        more = self.kernel.has(Fix.SLEEPABLE_MAP_IN_MAP)
        warning = check_map_prog_compatibility(self.prog, facts, map_in_map=more)
        if warning:
            self.log += f"{warning}\n"
        if insn.src == BPF_PSEUDO_MAP_VALUE:
            check_direct_value(map, off)
        if not known:
            if at >= MAX_USED_MAPS:
                raise Refused(E2BIG, "")
            await bpf_map_inc(map)
            self.used_maps.append(map)
            self.facts.append(facts)
        return at


def check_direct_value(map: BpfMap, off: int) -> None:
    """array_map_direct_value_addr(), as far as it can fail"""
    if not 0 <= off < BPF_MAX_VAR_OFF:
        raise Refused(EINVAL, f"direct value offset of {off & 0xFFFF_FFFF} is not allowed")
    if map.map_type != BPF_MAP_TYPE_ARRAY:
        raise Refused(EINVAL, "no direct value access support for this map type")
    if map.max_entries != 1 or off >= map.value_size:
        errno = ENOTSUPP if map.max_entries != 1 else EINVAL
        what = f"value_size={map.value_size} off={off}"
        raise Refused(errno, f"invalid access to map value pointer, {what}")
