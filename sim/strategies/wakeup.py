"""Wakeup trees: what is to be explored from a place in an execution, as sequences of steps.

After Abdulla, Aronis, Jonsson and Sagonas, JACM 64(4), 2017 (see `sim.strategies.dpor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from sim.strategies.steps import Packed, Step


@final
class Branch:
    """A step to take from some place on, and what is to follow it: a node of a wakeup tree."""

    __slots__ = ("children", "step")

    def __init__(self, step: Step) -> None:
        self.step: Final = step
        self.children: list[Branch] = []

    def packed(self) -> Packed:
        """The branch and all below it as plain data."""
        below = [branch.packed() for branch in self.children]
        return [self.step.packed(), below]

    @classmethod
    def unpacked(cls, packed: Packed) -> Branch:
        """The branch that was :meth:`packed`."""
        step, below = packed
        branch = cls(Step.unpacked(step))
        branch.children = [cls.unpacked(one) for one in below]
        return branch


@final
class Place:
    """A place in the current execution, between two steps.

    sleeping  steps that have been explored from here or further up, and nothing woke since
    tree      what is to be explored from here; the first is being explored
    """

    __slots__ = ("sleeping", "tree")

    def __init__(self, sleeping: list[Step], tree: list[Branch]) -> None:
        self.sleeping = sleeping
        self.tree = tree

    def insert(self, sequence: list[Step]) -> bool:
        """See to it that `sequence` is taken; False if that is asleep."""
        for asleep in self.sleeping:
            if _initial(asleep, sequence) is not None:
                return False
        tree = self.tree
        following = True
        while following:
            following = False
            for branch in tree:
                found = _initial(branch.step, sequence)
                if found is None:
                    continue
                if not branch.children or len(sequence) == 1:
                    return True  # all that can follow will be explored
                if found >= 0:
                    del sequence[found]
                tree = branch.children
                following = True
                break
        for step in sequence:
            branch = Branch(step)
            tree.append(branch)
            tree = branch.children
        return True


def _initial(step: Step, sequence: Sequence[Step]) -> int | None:
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
