"""The ancestor mask against the ancestor relation, worked out by following parents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sequencematch.mdp import Trajectory
from sequencematch.tree import ancestor_mask, build_trees, collate_trees

walks = st.lists(
    st.tuples(
        st.sampled_from([(4,), (4, 5), (5, 5, 6)]),
        st.lists(st.sampled_from([1, 2, 3, 8, 8, 9, 10]), max_size=10),
    ),
    min_size=1,
    max_size=5,
)


def parents(depth, real):
    """The parent of each real node of a row: the nearest node to its left that is one less deep; None for roots."""
    found = {}
    for node in range(real):
        above = [k for k in range(node) if depth[k] == depth[node] - 1]
        found[node] = above[-1] if depth[node] > 0 else None
    return found


@given(walks, st.sampled_from([None, 1, 2, 3, 50]))
def test_nodes_attend_to_themselves_and_their_ancestors_within_the_window(legal_walk, space, walks, window):
    trajectories = [Trajectory(prompt, legal_walk(wishes, space)) for prompt, wishes in walks]
    trees = build_trees(trajectories, space)
    batch = collate_trees(trees)
    mask = ancestor_mask(batch.depth, batch.exit, window)
    assert mask.dtype == torch.bool
    assert mask.shape == (*batch.token.shape, batch.token.shape[1])
    total = 0
    for row in range(len(mask)):
        # Padding begins after the last node that has a child or a parent: find it as what pack left over.
        depth = batch.depth[row].tolist()
        real = max((q + 1 for q in range(len(depth)) if depth[q] > 0), default=0)
        parent = parents(depth, real)
        for query in range(len(depth)):
            expected, node = {query}, query
            while query < real and parent[node] is not None:
                node = parent[node]
                expected.add(node)
            if window is not None:
                expected = {k for k in expected if depth[query] - depth[k] < window}
            assert mask[row, query].nonzero().flatten().tolist() == sorted(expected)
        total += real
    assert total == sum(len(tree) for tree in trees)


def test_by_hand():
    # A root with the branches 1-2 and 3, and two padding nodes.
    depth = torch.tensor([[0, 1, 2, 1, 0, 0]])
    exit = torch.tensor([[4, 3, 3, 4, 5, 6]])
    seen = [[0], [0, 1], [0, 1, 2], [0, 3], [4], [5]]
    near = [[0], [0, 1], [1, 2], [0, 3], [4], [5]]
    for window, expected in ((None, seen), (3, seen), (2, near), (1, [[q] for q in range(6)])):
        mask = ancestor_mask(depth, exit, window)[0]
        assert [row.nonzero().flatten().tolist() for row in mask] == expected


@pytest.mark.parametrize("window", [None, 2])
def test_no_row_is_fully_masked(space, window):
    batch = collate_trees(build_trees([Trajectory([1], [2] * 9 + [0]), Trajectory([2], [0])], space))
    assert ancestor_mask(batch.depth, batch.exit, window).any(-1).all()
