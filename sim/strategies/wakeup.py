"""Wakeup trees: what is to be explored from a place in an execution, as sequences of steps.

After Abdulla, Aronis, Jonsson and Sagonas, JACM 64(4), 2017 (see `sim.strategies.dpor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from sim.strategies.steps import Packed, Step
from sim.strategies.table import Table


@final
class Branch:
    """A step to take from some place on, and what is to follow it: a node of a wakeup tree.

    inner  whether something was to follow it when it was taken
    """

    __slots__ = ("children", "inner", "step")

    def __init__(self, step: Step) -> None:
        self.step: Final = step
        self.children: list[Branch] = []
        self.inner = False

    def packed(self) -> Packed:
        """The branch as plain data, without what is to follow."""
        return self.step.packed()

    @classmethod
    def unpacked(cls, packed: Packed) -> Branch:
        """The branch that was :meth:`packed`."""
        return cls(Step.unpacked(packed))


def pack_tree(branches: Sequence[Branch]) -> Packed:
    """Branches and all below them: each before its children, with the number of these.

    Flat, for a tree is as deep as an execution is long, and neither Python nor JSON nests so far.
    """
    found = []
    left = list(reversed(branches))
    while left:
        branch = left.pop()
        found.append([branch.packed(), len(branch.children)])
        left += reversed(branch.children)
    return found


def unpack_tree(packed: Packed) -> list[Branch]:
    """The branches that went into :func:`pack_tree`."""
    top: list[Branch] = []
    above = [(top, -1)]  # lists that are being filled, and how many branches each still lacks
    for step, children in packed:
        while not above[-1][1]:
            above.pop()
        siblings, lacking = above[-1]
        above[-1] = siblings, lacking - 1
        siblings.append(Branch.unpacked(step))
        above.append((siblings[-1].children, children))
    return top


@final
class Explored:
    """A branch that has been explored: its step, and of an inner one what was, behind it."""

    __slots__ = ("below", "inner", "step")

    def __init__(self, step: Step, below: list[Explored] | None) -> None:
        self.step: Final = step
        self.inner: Final = below is not None
        self.below: Final = below or []


def pack_explored(explored: Sequence[Explored], table: Table) -> list[int]:
    """What was explored, each before what was below: the step's number, how many are below.

    -1 below: not an inner branch.
    """
    found: list[int] = []
    left = list(reversed(explored))
    while left:
        one = left.pop()
        found += (table.number(one.step), len(one.below) if one.inner else -1)
        left += reversed(one.below)
    return found


@final
class Place:
    """A place in the current execution, between two steps.

    sleeping  steps that have been explored from here or further up, and nothing woke since
    tree      what is to be explored from here; the first is being explored
    explored  if asked for: what has been explored from here, and so on below (see `Explored`)
    """

    __slots__ = ("explored", "sleeping", "tree")

    def __init__(self, sleeping: list[Step], tree: list[Branch]) -> None:
        self.sleeping = sleeping
        self.tree = tree
        self.explored: list[Explored] = []

    def sleeps(self, sequence: Sequence[Step]) -> bool:
        """Whether all that begins with `sequence` has been explored."""
        return any(initial(asleep, sequence) is not None for asleep in self.sleeping)

    def insert(self, sequence: list[Step]) -> bool:
        """See to it that `sequence` is taken; False if that is asleep."""
        if self.sleeps(sequence):
            return False
        tree = self.tree
        following = True
        while following:
            following = False
            for branch in tree:
                found = initial(branch.step, sequence)
                if found is None:
                    continue
                if not branch.children:
                    return True  # all that can follow will be explored
                if found >= 0:
                    del sequence[found]
                    if not sequence:
                        return True
                tree = branch.children
                following = True
                break
        for step in sequence:
            branch = Branch(step)
            tree.append(branch)
            tree = branch.children
        return True


def initial(step: Step, sequence: Sequence[Step]) -> int | None:
    """Whether `step` can come first in `sequence`: where it is, -1 if it is not there.

    None: it cannot, for a dependent step comes before it.
    """
    key = step.key
    for at, other in enumerate(sequence):
        if other.key == key:
            return at if other.value == step.value else None
        if step.meets(other):
            return None
    return -1
