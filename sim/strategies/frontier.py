"""The tree of a complete search, shared out: which parts of it are left, and for whom.

Optimal DPOR (`sim.strategies.dpor`) walks the tree of executions depth first.  Here the same tree
is cut into *units*: a unit is a branch of a wakeup tree, with all that may follow it.  Whoever
explores a unit is a search of its own, with a floor (`Dpor.floor`) behind the branch.  It comes
back with the orders that concern places above the floor, which belong to this module, and with
what it has not come to: places further down, whose branches are units again.

Why that explores the same classes, each once.  What is done at a place depends on what sleeps
there and on its wakeup tree.  At every place branches are claimed in the order of the tree, and a
claimed branch sleeps for those that are claimed after it, as if it had been explored.  An order
that comes back from below a branch goes where the search would have put it, that went depth
first: of what sleeps there, what was claimed before that branch stops it (the unit has seen to
that, and tries again with other steps behind, as ever); the branches claimed after it are
followed as if they were in the tree still.  Below a leaf nothing sleeps at first, so there
nothing that comes from elsewhere can be missing, and following ends.  It does not end at inner
branches: in the place behind one something may sleep that keeps the search there from finding
all by itself.  So what has been explored behind inner branches is remembered, as long as an order
may come from what lies before them.

Of a leaf, two things are known only when its step has been taken: the values that it is given,
and whether it is fatal.  Until then no other branch of the place is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from sim.strategies.steps import Packed, Step
from sim.strategies.table import Table
from sim.strategies.units import (
    NOTHING,
    Claim,
    Node,
    Past,
    Report,
    Unit,
    alive,
    pack_claim,
    search_of,
    taken_by,
)
from sim.strategies.wakeup import Branch, Place, initial, pack_tree, unpack_tree


@final
class Frontier:
    """All that is left of a search.

    units  those that are being explored
    """

    def __init__(self) -> None:
        self.units: Final[dict[Unit, None]] = {}
        self._again: Final[list[Unit]] = []  # whose workers are gone
        self._root: Node | None = None
        self._levels: Final[list[dict[Node, None]]] = []  # by depth: nodes that can be claimed from

    @classmethod
    def of(cls, search: Packed) -> Frontier:
        """Of a whole search (`Dpor.packed`)."""
        frontier = cls()
        frontier._grow(None, search, [])
        return frontier

    @property
    def done(self) -> bool:
        """Whether nothing is left, and nobody is at work."""
        return not self.units and not self.free()

    def free(self) -> int:
        """At how many places something can be claimed."""
        return len(self._again) + sum(map(len, self._levels))

    # -- units go and come back --------------------------------------------------------------------

    def claim(self) -> Unit | None:
        """A branch to explore: at a place that has as few steps before it as any."""
        if self._again:
            unit = self._again.pop()
            self.units[unit] = None
            return unit
        level = next((level for level in self._levels if level), None)
        if level is None:
            return None
        node = next(iter(level))
        branch = node.tree.pop(0)
        claim = Claim(taken_by(branch), inner=bool(branch.children) and not branch.step.fatal)
        nth = len(node.claims)
        node.claims.append(claim)
        node.busy = not claim.inner
        unit = Unit(node, nth, branch, search_of(node, nth, branch))
        claim.unit = unit
        self.units[unit] = None
        self._note(node)
        return unit

    def give_back(self, unit: Unit) -> None:
        """Whoever explored it is gone: the next one to claim something gets it."""
        del self.units[unit]
        self._again.append(unit)

    def done_with(self, unit: Unit, report: Report) -> None:
        """A unit has come back."""
        node, claim = unit.node, unit.claim
        del self.units[unit]
        claim.unit = None
        if not claim.inner:
            node.busy = False
            if report.led is not None:
                claim.step = Step.unpacked(report.led)
        path = node.path()
        nths = [*(below.nth for below in path[1:]), unit.nth]
        table = Table(report.table)
        for index, sequence in report.exports:
            steps = [table.step(one) for one in sequence]
            self._insert(path[index], nths[index] + 1, steps)
        explored = [Past(table, numbers) for numbers in report.explored]
        if report.left is not None:
            self._grow(unit, report.left, explored)
        elif claim.inner and explored:
            claim.past = explored[0]
        mail, claim.mail = claim.mail, []
        for steps in mail:
            self._insert(self._behind(node, unit.nth), 0, steps)
        self._note(node)
        self._forget()

    def _insert(self, node: Node, nth: int, sequence: list[Step]) -> None:
        """See to it that `sequence` is taken, behind claim `nth` or later."""
        while True:
            found, at = None, nth
            while found is None and at < len(node.claims):
                step = node.claims[at].step
                found = initial(step, sequence)
                at += found is None
            if found is None:
                break
            claim = node.claims[at]
            if not claim.inner:
                return
            if found >= 0:
                del sequence[found]
                if not sequence:
                    return
            if claim.unit is not None:
                claim.mail.append(sequence)
                return
            node, nth = self._behind(node, at), 0
        Place([], node.tree).insert(sequence)
        self._note(node)

    def _behind(self, node: Node, nth: int) -> Node:
        """The place behind an inner claim that nobody explores now."""
        claim = node.claims[nth]
        if claim.node is None:
            asleep = node.asleep_for(nth)
            step = claim.step
            left = [one for one in asleep if one.key != step.key and not one.meets(step)]
            claim.node = Node(node, nth, left, [])
            claim.node.claims.extend(claim.past.claims())
            claim.past = NOTHING
        return claim.node

    def _grow(self, unit: Unit | None, packed: Packed, explored: list[Past]) -> None:
        """Add the places that a search has from its floor on, one below the other."""
        _, sleeping, tree, floor = packed
        branches = unpack_tree(tree)
        node = None if unit is None else unit.node
        nth = 0 if unit is None else unit.nth
        for depth, asleep in enumerate(sleeping):
            onward = branches.pop(0) if depth + 1 < len(sleeping) else None
            if depth >= floor:
                reached = depth - floor < len(explored)
                past = explored[depth - floor].claims() if reached else []
                before = [Step.unpacked(one) for one in asleep[: len(asleep) - len(past)]]
                below = Node(node, nth, before, branches)
                below.claims.extend(past)
                if node is None:
                    self._root = below
                else:
                    node.claims[nth].node = below
                node, nth = below, len(past)
                if onward is not None:
                    inner = depth + 1 - floor < len(explored)
                    node.claims.append(Claim(taken_by(onward), inner=inner))
                self._note(node)
            branches = [] if onward is None else onward.children

    # -- what is left ------------------------------------------------------------------------------

    def _note(self, node: Node) -> None:
        """Note whether branches of `node` can be claimed."""
        while len(self._levels) <= node.depth:
            self._levels.append({})
        level = self._levels[node.depth]
        if node.tree and not node.busy:
            level[node] = None
        else:
            level.pop(node, None)

    def _forget(self) -> None:
        """Forget what was explored before all that is left: no order comes from there."""
        node = self._root
        while node is not None:
            onward = None
            while node.past < len(node.claims):
                claim = node.claims[node.past]
                if claim.unit is not None or (claim.node is not None and alive(claim.node)):
                    onward = claim.node
                    break
                claim.node, claim.past = None, NOTHING
                node.past += 1
            node = onward

    # -- as plain data -----------------------------------------------------------------------------

    def packed(self) -> Packed:
        """All that is left, units in other hands included."""
        numbers: dict[Node, int] = {}
        tables: dict[Table, int] = {}
        found: Packed = []
        for node in self._nodes():
            parent = None if node.parent is None else numbers[node.parent]
            numbers[node] = len(numbers)
            tree, claims = node.tree, node.claims
            if node.busy:
                unit = claims[-1].unit
                assert unit is not None
                tree, claims = [unit.branch, *tree], claims[:-1]
            found.append(
                [
                    parent,
                    node.nth,
                    [step.packed() for step in node.asleep],
                    [pack_claim(claim, tables) for claim in claims],
                    pack_tree(tree),
                ]
            )
        return [[table.packed for table in tables], found]

    @classmethod
    def unpacked(cls, packed: Packed) -> Frontier:
        """The frontier that was :meth:`packed`."""
        frontier = cls()
        tables = [Table(table) for table in packed[0]]
        nodes: list[Node] = []
        units: list[tuple[Node, int, Packed, Packed]] = []
        for above, nth, asleep, claims, tree in packed[1]:
            parent = None if above is None else nodes[above]
            node = Node(parent, nth, [Step.unpacked(one) for one in asleep], unpack_tree(tree))
            for at, (step, inner, past, left, mail) in enumerate(claims):
                claim = Claim(Step.unpacked(step), inner=inner)
                claim.past = Past(tables[past[0]], past[1])
                node.claims.append(claim)
                if left is not None:
                    units.append((node, at, left, mail))
            if parent is None:
                frontier._root = node
            else:
                parent.claims[nth].node = node
            nodes.append(node)
            frontier._note(node)
        for node, at, left, mail in units:  # what was in other hands
            behind = frontier._behind(node, at)
            behind.tree.extend(unpack_tree(left))
            frontier._note(behind)
            for sequence in mail:
                frontier._insert(behind, 0, [Step.unpacked(one) for one in sequence])
        return frontier

    def whole(self) -> Packed | None:
        """As one search (`Dpor.packed`); None if it has been shared out."""
        sleeping, taken, trees = [], [], []
        node = self._root
        while node is not None:
            if self.units or len(node.claims) > 1 or any(claim.inner for claim in node.claims):
                return None
            sleeping.append([step.packed() for step in node.asleep])
            taken.append([Branch(claim.step) for claim in node.claims])
            trees.append(node.tree)
            node = node.claims[0].node if node.claims else None
        branches: list[Branch] = []
        for onward, tree in zip(reversed(taken), reversed(trees), strict=True):
            for branch in onward:
                branch.children = branches
            branches = [*onward, *tree]
        return [len(sleeping) - 1, sleeping, pack_tree(branches), 0]

    def _nodes(self) -> Iterator[Node]:
        """All nodes, parents first."""
        left = [] if self._root is None else [self._root]
        while left:
            node = left.pop()
            yield node
            left += [claim.node for claim in node.claims if claim.node is not None]
