"""Places, claims and units: the parts of a shared search (see `sim.strategies.frontier`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from sim.strategies.steps import Packed, Step
from sim.strategies.table import Table
from sim.strategies.wakeup import Branch, pack_tree


@final
@dataclass(frozen=True, eq=False)
class Past:
    """What was explored from a place (`pack_explored`)."""

    table: Table
    numbers: list[int]

    def claims(self) -> list[Claim]:
        """The same, as claims."""
        claims: list[Claim] = []
        numbers = self.numbers
        at = 0
        while at < len(numbers):
            claim = Claim(self.table.step(numbers[at]), inner=numbers[at + 1] >= 0)
            begin = at = at + 2
            missing = max(numbers[at - 1], 0)  # how many of what lies below are still to come
            while missing:
                missing += max(numbers[at + 1], 0) - 1
                at += 2
            if at > begin:
                claim.past = Past(self.table, numbers[begin:at])
            claims.append(claim)
        return claims


NOTHING: Final = Past(Table([]), [])


@final
class Claim:
    """A branch that has been claimed at a place.

    step   as it is to be taken, or was
    inner  whether orders from elsewhere go through it; else it ends them, for it is in good hands
    node   the place behind it, if something is left to do there, or was when it was last asked for
    past   what was explored from the place behind it, if there is no node
    unit   that explores it now; mail: orders that have come for it meanwhile
    """

    __slots__ = ("inner", "mail", "node", "past", "step", "unit")

    def __init__(self, step: Step, *, inner: bool) -> None:
        self.step = step
        self.inner: Final = inner
        self.node: Node | None = None
        self.past = NOTHING
        self.unit: Unit | None = None
        self.mail: list[list[Step]] = []


@final
class Node:
    """A place of the search's tree.

    parent  the place one step before, None: the root; nth: which of its claims leads here
    asleep  what sleeps here from the start
    claims  the branches that were claimed, in order
    tree    the branches that are left
    busy    whether the last claim is a leaf whose step has not been taken yet
    past    how many claims, the first ones, are of no further interest
    """

    __slots__ = ("asleep", "busy", "claims", "depth", "nth", "parent", "past", "tree")

    def __init__(
        self, parent: Node | None, nth: int, asleep: list[Step], tree: list[Branch]
    ) -> None:
        self.parent: Final = parent
        self.nth: Final = nth
        self.depth: Final[int] = 0 if parent is None else parent.depth + 1
        self.asleep: Final = asleep
        self.claims: Final[list[Claim]] = []
        self.tree: Final = tree
        self.busy = False
        self.past = 0

    def asleep_for(self, nth: int) -> list[Step]:
        """What sleeps here for the claim of that number."""
        return [*self.asleep, *(claim.step for claim in self.claims[:nth])]

    def path(self) -> list[Node]:
        """The nodes from the root to this one."""
        node: Node | None = self
        path = []
        while node is not None:
            path.append(node)
            node = node.parent
        return path[::-1]


@final
@dataclass(frozen=True, eq=False)
class Unit:
    """A claimed branch, number `nth` at `node`; `packed` is the search of it (`Dpor.unpacked`)."""

    node: Node
    nth: int
    branch: Branch
    packed: Packed

    @property
    def claim(self) -> Claim:
        """Its claim."""
        return self.node.claims[self.nth]


@final
@dataclass(frozen=True)
class Report:
    """What a search says of its unit when it comes back, as plain data.

    led       the step of the unit's branch, as it was taken (`Dpor.led`); None: it was not
    table     of the steps in the next two
    exports   orders for places above the floor (`Dpor.exports`)
    explored  behind the floor (`Dpor.explored`)
    left      the search of what it has not come to (`Dpor.packed`); None: nothing is left
    """

    led: Packed | None
    table: Packed
    exports: list[Packed]
    explored: list[list[int]]
    left: Packed | None


def alive(node: Node) -> bool:
    """Whether something is left to do at a place or below."""
    left = [node]
    while left:
        node = left.pop()
        if node.tree or node.busy or any(claim.unit is not None for claim in node.claims):
            return True
        left += [claim.node for claim in node.claims if claim.node is not None]
    return False


def pack_claim(claim: Claim, tables: dict[Table, int]) -> Packed:
    """A claim as plain data: step, inner, past; if a unit explores it, what was to follow, mail."""
    left, mail = None, []
    if claim.unit is not None:
        left = pack_tree(claim.unit.branch.children)
        mail = [[step.packed() for step in steps] for steps in claim.mail]
    past = [tables.setdefault(claim.past.table, len(tables)), claim.past.numbers]
    return [claim.step.packed(), claim.inner, past, left, mail]


def taken_by(branch: Branch) -> Step:
    """The step of a branch, as it is to be taken."""
    return Step.unpacked(branch.step.packed())


def search_of(node: Node, nth: int, branch: Branch) -> Packed:
    """The search of a branch of a node, its floor behind it."""
    sleeping = [node.asleep_for(nth)]
    for below in reversed(node.path()[1:]):
        assert below.parent is not None
        onward = Branch(below.parent.claims[below.nth].step)
        onward.children = [branch]
        branch = onward
        sleeping.append(below.parent.asleep_for(below.nth))
    shown = [[step.packed() for step in steps] for steps in reversed(sleeping)]
    return [node.depth, shown, pack_tree([branch]), node.depth + 1]
