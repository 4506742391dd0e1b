"""The ancestor mask against the ancestor relation, worked out by following parents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_walks import cases, make

from sequencematch.mdp import Trajectory
from sequencematch.tree import ancestor_mask, collate_trajectories


def parents(depth):
    """The parent of each node: the nearest node to its left that is one less deep; None for roots and padding."""
    found = []
    for node in range(len(depth)):
        above = [k for k in range(node) if depth[k] == depth[node] - 1]
        found.append(above[-1] if depth[node] > 0 else None)
    return found


@given(cases, st.sampled_from([None, 1, 2, 3, 50]))
def test_nodes_attend_to_themselves_and_their_ancestors_within_the_window(legal_walk, space, cases, window):
    batch = collate_trajectories([make(case, legal_walk, space) for case in cases], space)
    mask = ancestor_mask(batch.depth, batch.exit, window)
    assert mask.dtype == torch.bool
    assert mask.shape == (len(batch.token), len(batch.token))
    depth = batch.depth.tolist()
    parent = parents(depth)
    for query in range(len(depth)):
        expected, node = {query}, query
        while parent[node] is not None:
            node = parent[node]
            expected.add(node)
        if window is not None:
            expected = {k for k in expected if depth[query] - depth[k] < window}
        assert mask[query].nonzero().flatten().tolist() == sorted(expected)


# A root with the branches 1-2 and 3, and two padding nodes.
DEPTH = torch.tensor([0, 1, 2, 1, 0, 0])
EXIT = torch.tensor([4, 3, 3, 4, 5, 6])


def test_by_hand():
    seen = [[0], [0, 1], [0, 1, 2], [0, 3], [4], [5]]
    near = [[0], [0, 1], [1, 2], [0, 3], [4], [5]]
    for window, expected in ((None, seen), (3, seen), (2, near), (1, [[q] for q in range(6)])):
        mask = ancestor_mask(DEPTH, EXIT, window)
        assert [row.nonzero().flatten().tolist() for row in mask] == expected


@pytest.mark.parametrize("window", [None, 2])
def test_any_leading_dimensions(window):
    chain = torch.arange(6), torch.full((6,), 6)
    depth, exit = torch.stack([DEPTH, chain[0]]), torch.stack([EXIT, chain[1]])
    mask = ancestor_mask(depth, exit, window)
    assert torch.equal(mask[0], ancestor_mask(DEPTH, EXIT, window))
    assert torch.equal(mask[1], ancestor_mask(*chain, window))
    deeper = ancestor_mask(depth.view(1, 2, 1, 6), exit.view(1, 2, 1, 6), window)
    assert torch.equal(deeper, mask.view(1, 2, 1, 6, 6))


@pytest.mark.parametrize("window", [None, 2])
def test_no_row_is_fully_masked(space, window):
    batch = collate_trajectories([Trajectory([1], [2] * 9 + [0]), Trajectory([2], [0])], space)
    assert ancestor_mask(batch.depth, batch.exit, window).any(-1).all()
