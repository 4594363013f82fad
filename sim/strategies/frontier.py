"""The tree of a complete search, shared out: which parts of it are left, and for whom.

Optimal DPOR (`sim.strategies.dpor`) walks the tree of executions depth first.  Here the same tree
is cut into *units*: a unit is a leaf of a wakeup tree, with all that may follow it.  Whoever
explores a unit is a search of its own, with a floor (`Dpor.floor`) behind the leaf.  It comes
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
all by itself.

Of a leaf, two things are known only when its step has been taken: the values that it is given,
and whether it is fatal.  Until then no other branch of the place is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from sim.strategies.steps import Packed, Step
from sim.strategies.wakeup import Branch, Place, initial, pack_tree, unpack_tree


@final
class Claim:
    """A branch that has been claimed at a place.

    step   as it is to be taken, or was
    node   the place behind it, if orders from elsewhere may have to go there, or something is
           left to do there
    inner  whether orders from elsewhere go through it; else it ends them, for it is in good hands
    """

    __slots__ = ("inner", "node", "step")

    def __init__(self, step: Step, *, inner: bool) -> None:
        self.step = step
        self.inner: Final = inner
        self.node: Node | None = None


@final
class Node:
    """A place of the search's tree.

    parent  the place one step before, None: the root; nth: which of its claims leads here
    asleep  what sleeps here from the start
    claims  the branches that were claimed, in order
    tree    the branches that are left
    busy    whether the last claim is a leaf whose step has not been taken yet
    """

    __slots__ = ("asleep", "busy", "claims", "depth", "nth", "parent", "tree")

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
    """A claimed leaf; `packed` is the search of what may follow it (`Dpor.unpacked`)."""

    node: Node
    branch: Branch
    packed: Packed


@final
class Frontier:
    """All that is left of a search.

    units  those that are being explored
    """

    def __init__(self) -> None:
        self.units: Final[dict[Unit, None]] = {}
        self._root: Node | None = None
        self._levels: Final[list[dict[Node, None]]] = []  # by depth: nodes that can be claimed from

    @classmethod
    def of(cls, search: Packed) -> Frontier:
        """Of a whole search (`Dpor.packed`)."""
        frontier = cls()
        frontier._grow(None, search)
        return frontier

    @property
    def done(self) -> bool:
        """Whether nothing is left, and nobody is at work."""
        return not self.units and not self.free()

    def free(self) -> int:
        """At how many places something can be claimed."""
        return sum(map(len, self._levels))

    # -- units go and come back --------------------------------------------------------------------

    def claim(self) -> Unit | None:
        """A leaf to explore: at a place that has as few steps before it as any."""
        while True:
            level = next((level for level in self._levels if level), None)
            if level is None:
                return None
            node = next(iter(level))
            branch = node.tree.pop(0)
            if branch.children and not branch.step.fatal:
                self._enter(node, branch)
                continue
            node.claims.append(Claim(_taken(branch), inner=False))
            node.busy = True
            self._note(node)
            unit = Unit(node, branch, _packed(node, branch))
            self.units[unit] = None
            return unit

    def _enter(self, node: Node, branch: Branch) -> None:
        """Claim an inner branch: its branches are those of the place behind it."""
        step = _taken(branch)
        asleep = [
            other
            for other in node.asleep_for(len(node.claims))
            if other.key != step.key and not other.meets(step)
        ]
        claim = Claim(step, inner=True)
        claim.node = Node(node, len(node.claims), asleep, branch.children)
        node.claims.append(claim)
        self._note(claim.node)
        self._note(node)

    def give_back(self, unit: Unit) -> None:
        """Whoever explored it is gone: it is as if it had never been claimed."""
        node = unit.node
        node.tree.insert(0, unit.branch)
        del node.claims[-1]
        node.busy = False
        del self.units[unit]
        self._note(node)

    def done_with(
        self, unit: Unit, led: Packed | None, exports: Sequence[Packed], left: Packed | None
    ) -> None:
        """A unit has come back.

        led      the leaf's step, as it was taken (`Dpor.led`); None: it was not
        exports  orders for places above its floor
        left     the search of what it has not come to (`Dpor.packed`); None: nothing is left
        """
        node = unit.node
        nths = [below.nth for below in node.path()[1:]] + [len(node.claims) - 1]
        if led is not None:
            node.claims[-1].step = Step.unpacked(led)
        node.busy = False
        del self.units[unit]
        path = node.path()
        for index, sequence, last in exports:
            steps = [Step.unpacked(one) for one in sequence]
            self._insert(path[index], nths[index] + 1, steps, Branch.unpacked(last))
        if left is not None:
            self._grow(node, left)
        self._note(node)

    def _insert(self, node: Node, nth: int, sequence: list[Step], last: Branch) -> None:
        """See to it that `sequence` and then `last` are taken, behind claim `nth` or later."""
        following = True
        while following:
            following = False
            for claim in node.claims[nth:]:
                found = initial(claim.step, claim.step.values, sequence, last)
                if found is None:
                    continue
                if not claim.inner or found == len(sequence):
                    return
                if found >= 0:
                    del sequence[found]
                assert claim.node is not None
                node, nth = claim.node, 0
                following = True
                break
        Place([], node.tree).insert(sequence, last)
        self._note(node)

    def _grow(self, node: Node | None, packed: Packed) -> None:
        """Add the places that a search has from its floor on, one below the other."""
        _, sleeping, tree, floor = packed
        branches = unpack_tree(tree)
        for depth, asleep in enumerate(sleeping):
            onward = branches.pop(0) if depth + 1 < len(sleeping) else None
            if depth >= floor:
                nth = 0 if node is None else len(node.claims) - 1
                below = Node(node, nth, [Step.unpacked(one) for one in asleep], branches)
                if node is None:
                    self._root = below
                else:
                    node.claims[-1].node = below
                if onward is not None:
                    below.claims.append(Claim(_taken(onward), inner=False))
                node = below
            branches = [] if onward is None else onward.children
        while node is not None and node.depth >= floor:
            self._note(node)
            node = node.parent

    # -- what is left ------------------------------------------------------------------------------

    def _note(self, node: Node) -> None:
        """Note whether branches of `node` can be claimed, and whether it is needed."""
        while len(self._levels) <= node.depth:
            self._levels.append({})
        level = self._levels[node.depth]
        free = bool(node.tree) and not node.busy
        if free:
            level[node] = None
        else:
            level.pop(node, None)
        self._forget(node)

    def _forget(self, node: Node) -> None:
        """Forget places where nothing is left to do, and nothing can come from elsewhere."""
        while node.parent is not None and not node.tree and not node.busy:
            claim = node.parent.claims[node.nth]
            if claim.inner or any(below.node is not None for below in node.claims):
                return
            claim.node = None
            node = node.parent

    # -- as plain data -----------------------------------------------------------------------------

    def packed(self) -> Packed:
        """All that is left, units in other hands included."""
        claimed = {unit.node: unit.branch for unit in self.units}
        numbers: dict[Node, int] = {}
        found: Packed = []
        for node in self._nodes():
            parent = None if node.parent is None else numbers[node.parent]
            numbers[node] = len(numbers)
            busy = [claimed[node]] if node.busy else []
            claims = node.claims[:-1] if node.busy else node.claims
            found.append(
                [
                    parent,
                    node.nth,
                    [step.packed() for step in node.asleep],
                    [[claim.step.packed(), claim.inner] for claim in claims],
                    pack_tree([*busy, *node.tree]),
                ]
            )
        return found

    @classmethod
    def unpacked(cls, packed: Packed) -> Frontier:
        """The frontier that was :meth:`packed`."""
        frontier = cls()
        nodes: list[Node] = []
        for above, nth, asleep, claims, tree in packed:
            parent = None if above is None else nodes[above]
            node = Node(parent, nth, [Step.unpacked(one) for one in asleep], unpack_tree(tree))
            for step, inner in claims:
                node.claims.append(Claim(Step.unpacked(step), inner=inner))
            if parent is None:
                frontier._root = node
            else:
                parent.claims[nth].node = node
            nodes.append(node)
        for node in reversed(nodes):
            frontier._note(node)
        return frontier

    def whole(self) -> Packed | None:
        """As one search (`Dpor.packed`); None if it has been shared out."""
        sleeping, taken, trees = [], [], []
        node = self._root
        while node is not None:
            if self.units or len(node.claims) > 1 or any(claim.inner for claim in node.claims):
                return None
            sleeping.append([step.packed() for step in node.asleep])
            taken.append([Branch(claim.step, claim.step.values) for claim in node.claims])
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


def _taken(branch: Branch) -> Step:
    """The step of a branch, as it is to be taken."""
    step = Step.unpacked(branch.step.packed())
    step.values = branch.values
    return step


def _packed(node: Node, branch: Branch) -> Packed:
    """The search of a leaf of a node, its floor behind it."""
    sleeping = [node.asleep_for(len(node.claims) - 1)]
    for below in reversed(node.path()[1:]):
        assert below.parent is not None
        onward = Branch(step := below.parent.claims[below.nth].step, step.values)
        onward.children = [branch]
        branch = onward
        sleeping.append(below.parent.asleep_for(below.nth))
    shown = [[step.packed() for step in steps] for steps in reversed(sleeping)]
    return [node.depth, shown, pack_tree([branch]), node.depth + 1]
