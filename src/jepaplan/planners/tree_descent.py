"""Many paths down many trees at once: level by level, and in turns where paths meet.

A path chooses at every node by what the paths before it chose there: each of them counts as the dearest until
its cost is known (virtual loss, Chaslot et al., 2008). All that a choice depends on is the node's own edges,
which only paths through that node have changed. So nodes of one level need not wait for each other, and only
paths that meet at a node choose one after another. The leaves are those of paths sent down one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jepaplan.planners.tree_statistics import Edges, Level, Paths, Tree, edges

Choose = Callable[[Edges], np.ndarray]  # of each node one of its edges that are open


def descend(
    tree: Tree, leaves: int, possible: Int[np.ndarray, " B"], choose: list[Choose], *, least: bool
) -> Paths:
    """Send `leaves` paths down each tree, to edges that nobody took; the first so many are `possible`.

    `choose` decides at the root, then below it.
    """
    count = leaves * len(possible)
    parents = tree.roots.repeat(leaves)
    paths = Paths(leaves, parents, np.zeros_like(parents), np.zeros_like(parents), [])
    going = np.flatnonzero((np.arange(leaves) < possible[:, None]).reshape(count))
    at = parents[going]
    while len(going):
        meeting = Meeting.of(at)
        going, at = going[meeting.order], at[meeting.order]
        slots = meeting.take_turns(edges(tree, meeting.nodes, least=least), choose[min(len(paths.levels), 1)])
        paths.levels.append(Level(going, at, meeting.nodes))
        paths.parents[going], paths.slots[going] = at, slots
        paths.depth[going] = len(paths.levels)
        at = tree.children[at, slots]
        further = at != tree.spare
        going, at = going[further], at[further]
    return paths


@dataclass(frozen=True)
class Meeting:
    """Which paths are at the same node."""

    order: Int[np.ndarray, " n"]  # of the paths, so that those at one node are neighbours
    nodes: Int[np.ndarray, " R"]  # each once, from the one where most paths meet
    begin: Int[np.ndarray, " R"]  # of each node the place of its first path in that order
    size: Int[np.ndarray, " R"]  # and how many there are

    @classmethod
    def of(cls, at: Int[np.ndarray, " n"]) -> "Meeting":
        """From the node of each path; of paths at one node the first stays the first."""
        order = at.argsort(kind="stable")
        nodes = at[order]
        another = np.ones(len(at), bool)
        np.not_equal(nodes[1:], nodes[:-1], out=another[1:])
        begin = np.flatnonzero(another)
        size = np.append(begin[1:], len(at)) - begin
        crowded = (-size).argsort(kind="stable")
        return cls(order, nodes[begin[crowded]], begin[crowded], size[crowded])

    @np.errstate(invalid="ignore")  # costs may be infinite
    def take_turns(self, here: Edges, choose: Choose) -> Int[np.ndarray, " n"]:
        """The edge that each path chooses, in the new order."""
        slots = np.empty_like(self.order)
        # how many nodes have a path for each turn
        rows = np.searchsorted(-self.size, -np.arange(self.size[0]))
        for turn, count in enumerate(rows.tolist()):
            here = here if count == len(here.used) else here.first(count)
            slot = choose(here)
            slots[self.begin[:count] + turn] = slot
            here.imagine(slot)
        return slots
