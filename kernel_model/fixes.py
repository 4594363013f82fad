"""Which kernel is modelled: versions, upstream commits that change the model, and mutants.

Every member of :class:`Fix` is one place (or a few) in the model where a commit made a
difference.  A version has the members that were in it when it was released; each can be
switched on or off by its id.  A mutant is a deliberate defect: off in every version, switched
on by its name, for showing that the tool finds what the rule it breaks protects from.

Not modelled: every other commit of a release.  ``--kernel 6.8`` means the v5.10 model plus
these fixes, and every verdict says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sim.errors import UsageError

#: The releases that can be asked for, in order, with what each is known for here.
VERSIONS: Final = (
    "5.5", "5.6", "5.8", "5.9", "5.10", "5.11", "5.12", "5.14", "6.1", "6.2", "6.7", "6.8", "6.12",
)  # fmt: skip
DEFAULT_VERSION: Final = "5.10"
LATER: Final = "later"  # than every one of them


@dataclass(frozen=True)
class Commit:
    """An upstream commit, or a mutant (then `since` is None).

    id        12 hex digits of the commit, or ``mutant:NAME``
    subject   the commit's subject, or what the mutant breaks
    since     the first of VERSIONS that has it, or LATER
    requires  ids without which it makes no sense
    excludes  ids with which it makes no sense
    """

    id: str
    subject: str
    since: str | None
    requires: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


class Fix(Enum):
    """One member per commit or mutant; model code asks ``kernel.has(Fix.X)`` where it differs."""

    REMOVE_SYNCHRONIZE_RCU = Commit(
        "bba1dc0b55ac", "bpf: Remove redundant synchronize_rcu.", since="5.9"
    )
    HALF_PAGE_WAIT = Commit("05d57f1793fb", "bpf: Fix trampoline usage in preempt", since="5.6")
    FEXIT_IMAGE = Commit(
        "e21aa341785c",
        "bpf: Fix fexit trampoline.",
        since="5.12",
        requires=("05d57f1793fb", "1e6c62a88215"),
    )
    MODIFY_DIRECT = Commit("8a141dd7f706", "ftrace: Fix modify_ftrace_direct.", since="5.14")
    TAIL_CALL_TRAMPOLINE = Commit(
        "2b5dcb31a19a",
        "bpf, x64: Fix tailcall infinite loop",
        since="6.7",
        requires=("ebf7d1f508a7",),
    )
    UREF = Commit("c9da161c6517", "bpf: fix clearing on persistent program array maps", since="5.5")
    UNTRACK_ON_ERROR = Commit(
        "a2ea07465c8d", "bpf: Fix missing prog untrack in release_maps", since="5.5"
    )
    TAILCALL_TARGET = Commit(
        "cf71b174d346",
        "bpf: rename poke descriptor's 'ip' member to 'tailcall_target'",
        since="5.10",
    )
    TAIL_CALL_SUBPROGS = Commit(
        "ebf7d1f508a7",
        "bpf, x64: rework pro/epilogue and tailcall handling in JIT",
        since="5.10",
        requires=("cf71b174d346",),
    )
    SUBPROG_UNTRACK = Commit(
        "f263a81451c1",
        "bpf: Track subprog poke descriptors correctly and fix use-after-free",
        since="5.14",
        requires=("ebf7d1f508a7",),
    )
    OWNER_LOCK = Commit(
        "54713c85f536", "bpf: Fix potential race in tail call compatibility check", since="6.1"
    )
    TAIL_CALL_KEY = Commit(
        "a657182a5c51",
        "bpf: Don't use tnum_range on array range checking for poke descriptors",
        since="6.1",
    )
    POKE_WITHOUT_KSYM = Commit(
        "4b7de801606e", "bpf: Fix prog_array_map_poke_run map poke update", since="6.7"
    )
    TAIL_CALL_HIERARCHY = Commit(
        "116e04ba1459",
        "bpf, x64: Fix tailcall hierarchy",
        since="6.12",
        requires=("ebf7d1f508a7",),
    )
    TAIL_CALL_COUNT_OFFSET = Commit(
        "ff672c67ee76",
        "bpf, x86: Fix tail call count offset calculation on bpf2bpf call",
        since="6.1",
        requires=("ebf7d1f508a7",),
    )
    CLEAR_RESCHED = Commit(
        "4406942e65ca", "bpf: Fix RCU stall in bpf_fd_array_map_clear()", since=LATER
    )
    SLEEPABLE = Commit("1e6c62a88215", "bpf: Introduce sleepable BPF programs", since="5.10")
    INNER_MAP = Commit(
        "4a8f87e60f6d",
        "bpf: Allow for map-in-map with dynamic inner array map entries",
        since="5.10",
    )
    SLEEPABLE_MAP_IN_MAP = Commit(
        "638e4b825d52",
        "bpf: Allows per-cpu maps and map-in-map in sleepable programs",
        since="5.12",
        requires=("1e6c62a88215",),
    )
    TRACE_IMPLIES_RCU = Commit(
        "e6c86c513f44", "rcu-tasks: Provide rcu_trace_implies_rcu_gp()", since="6.2"
    )
    DEFER_INNER_MAP_FREE = Commit(
        "876673364161", "bpf: Defer the free of inner map when necessary", since="6.8"
    )
    INNER_FREE_RCU_ONLY = Commit(
        "mutant:inner-free-rcu-only",
        "the deferred free of an inner map waits for a classic grace period only",
        since=None,
        requires=("876673364161",),
    )
    INNER_FREE_TRACE_ONLY = Commit(
        "mutant:inner-free-trace-only",
        "the deferred free of an inner map waits for a Tasks Trace grace period only",
        since=None,
        requires=("876673364161",),
        excludes=("mutant:inner-free-rcu-only",),
    )

    POKE_NO_INT3 = Commit(
        "mutant:poke-no-int3", "text_poke_bp() writes without a breakpoint", since=None
    )
    INSTALL_SWAPPED = Commit(
        "mutant:install-swapped",
        "a tail call is installed by opening the bypass before the target is set",
        since=None,
        requires=("ebf7d1f508a7",),
    )
    REMOVE_NO_GP = Commit(
        "mutant:remove-no-gp",
        "a tail call is removed without a grace period between bypass and target",
        since=None,
        requires=("ebf7d1f508a7",),
    )
    REMOVE_TRACE_GP = Commit(
        "mutant:remove-trace-gp",
        "a tail call is removed under a Tasks Trace grace period",
        since=None,
        requires=("ebf7d1f508a7",),
        excludes=("mutant:remove-no-gp",),
    )
    PUSH_BACK = Commit(
        "mutant:push-back",
        "no bypass: registers are popped before the target, and pushed back behind it",
        since=None,
        requires=("ebf7d1f508a7",),
    )
    STABLE_FIRST = Commit(
        "mutant:stable-first", "a poke descriptor is stable before it is fixed up", since=None
    )
    FIXUP_UNLOCKED = Commit(
        "mutant:fixup-unlocked", "the JIT fixes tail calls up without poke_mutex", since=None
    )
    NO_UNTRACK = Commit(
        "mutant:no-untrack", "a freed program stays in the list of its prog arrays", since=None
    )
    PUT_BEFORE_POKE = Commit(
        "mutant:put-before-poke",
        "the reference to the old program is dropped before the tail calls are patched",
        since=None,
    )
    REPLACE_UNLOCKED = Commit(
        "mutant:replace-unlocked",
        "the slots of a prog array change, and tail calls are patched, without poke_mutex",
        since=None,
    )
    PROG_FREE_NO_GP = Commit(
        "mutant:prog-free-no-gp", "a program is freed without a grace period", since=None
    )

    NO_OWNER_CHECK = Commit(
        "mutant:no-owner-check", "a prog array takes programs of any type", since=None
    )

    TRAMP_NO_TASKS = Commit(
        "mutant:tramp-no-tasks",
        "a half of a trampoline is written anew without a Tasks RCU grace period",
        since=None,
        requires=("1e6c62a88215", "05d57f1793fb"),
        excludes=("e21aa341785c",),
    )
    TRAMP_NO_TRACE = Commit(
        "mutant:tramp-no-trace",
        "a half of a trampoline is written anew without a Tasks Trace grace period",
        since=None,
        requires=("1e6c62a88215", "05d57f1793fb"),
        excludes=("e21aa341785c",),
    )
    TRAMP_FREE_NO_GP = Commit(
        "mutant:tramp-free-no-gp",
        "a trampoline is freed without a Tasks RCU grace period",
        since=None,
        requires=("05d57f1793fb",),
        excludes=("e21aa341785c",),
    )
    SLEEPABLE_FREED_BY_RCU = Commit(
        "mutant:sleepable-call-rcu",
        "a sleepable program is freed after a classic RCU grace period",
        since=None,
        requires=("1e6c62a88215",),
    )

    @property
    def id(self) -> str:
        """What the command line calls it."""
        return self.value.id

    @property
    def subject(self) -> str:
        """What it changes."""
        return self.value.subject


_BY_ID: Final = {fix.id: fix for fix in Fix}


def fix_named(name: str) -> Fix:
    """The fix of this commit id (at least 8 digits of it) or mutant name.

    Raises UsageError naming the known ones.
    """
    found = _BY_ID.get(name)
    if found is None and len(name) >= 8:
        found = next((f for f in Fix if f.id.startswith(name) or name.startswith(f.id)), None)
    if found is None:
        known = "\n".join(f"  {f.id}  {f.subject}" for f in Fix)
        raise UsageError(f"no fix or mutant is named {name!r}; the model knows:\n{known}")
    return found


def fixes_of(version: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> frozenset[Fix]:
    """The fixes of a release, plus and minus some, by id.

    A mutant brings what it requires with it; a commit does not.  Raises UsageError for an
    unknown version or id, an id both added and removed, and a set that makes no sense.
    """
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise UsageError(f"kernel version {version!r} is not modelled; known: {known}")
    released = VERSIONS[: VERSIONS.index(version) + 1]
    fixes = {f for f in Fix if f.value.since in released}
    added = {fix_named(name) for name in add}
    removed = {fix_named(name) for name in remove}
    if both := sorted(f.id for f in added & removed):
        raise UsageError(f"{', '.join(both)} is asked for with --with and with --without")
    for mutant in [f for f in added if f.value.since is None]:
        added |= {fix_named(name) for name in mutant.value.requires} - removed
    fixes = (fixes | added) - removed
    present = {f.id for f in fixes}
    for fix in sorted(fixes, key=lambda f: f.id):
        missing = [name for name in fix.value.requires if name not in present]
        if missing:
            raise UsageError(
                f"{fix.id} ({fix.subject}) makes no sense without {', '.join(missing)}: "
                f"add --with {missing[0]} or drop {fix.id}"
            )
        if clash := [name for name in fix.value.excludes if name in present]:
            raise UsageError(f"{fix.id} and {clash[0]} exclude each other: drop one of them")
    return frozenset(fixes)


def describe(version: str, fixes: frozenset[Fix]) -> str:
    """``v5.10 model``, and what is added to it and left out of it.

    Of another release than v5.10: ``v6.8 (v5.10 model + fixes: ...)``, then what differs from
    that release.
    """
    reference, base = fixes_of(DEFAULT_VERSION), fixes_of(version)
    text = "v5.10 model"
    if version != DEFAULT_VERSION:
        more = f" + fixes: {_ids(base - reference)}" if base - reference else ""
        less = f" without: {_ids(reference - base)}" if reference - base else ""
        text = f"v{version} ({text}{more}{less})"
    changes = [f"+{f.id}" for f in _sorted(fixes - base)]
    changes += [f"-{f.id}" for f in _sorted(base - fixes)]
    return " ".join([text, *changes])


def _sorted(fixes: frozenset[Fix]) -> list[Fix]:
    return sorted(fixes, key=lambda fix: fix.id)


def _ids(fixes: frozenset[Fix]) -> str:
    return ", ".join(fix.id for fix in _sorted(fixes))
