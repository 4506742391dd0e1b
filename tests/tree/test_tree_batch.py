"""Packing trees into rows: nothing lost, nothing shared, walks in the order the trajectories came in."""

from dataclasses import fields
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sequencematch.mdp import Trajectory, states
from sequencematch.tree import build_trees, collate_trees, pack

capacities = st.integers(1, 30)


@given(capacities.flatmap(lambda capacity: st.tuples(st.lists(st.integers(1, capacity)), st.just(capacity))))
def test_pack_is_a_tight_partition(case):
    sizes, capacity = case
    rows = pack(sizes, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    fill = [sum(sizes[index] for index in row) for row in rows]
    assert all(0 < nodes <= capacity for nodes in fill)
    # A new row is opened only for what fits in none of the others: so any two hold more than one row could, and at
    # most one row is half full or less.
    assert all(one + other > capacity for one, other in combinations(fill, 2))
    assert sum(2 * nodes <= capacity for nodes in fill) <= 1


def test_pack_fits_best():
    assert pack([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    # 3 fits in both rows; the fuller one (7 of 10) takes it, which leaves room for the second 5.
    rows = pack([7, 5, 3, 5], 10)
    assert sorted(map(sorted, rows)) == [[0, 2], [1, 3]]
    assert pack([], 10) == []


trajectories = st.lists(
    st.tuples(
        st.sampled_from([(4,), (4, 5), (5, 5, 6), (6,)]),
        st.lists(st.sampled_from([1, 2, 3, 8, 8, 9, 10]), max_size=12),
        st.booleans(),
        st.booleans(),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=8,
)


def make(case, legal_walk, space):
    prompt, wishes, terminated, policy, weight = case
    actions = legal_walk(wishes, space, terminated)
    source = {"source": "policy", "policy_version": 1} if policy else {}
    return Trajectory(prompt, actions, [weight] * len(actions), terminated, **source)


def string_at(batch, node):
    """The string of a flat node, from the packed row alone."""
    length = batch.token.shape[1]
    row, column = divmod(int(node), length)
    seen = [k for k in range(column + 1) if batch.exit[row, k] > column]
    return tuple(batch.token[row, k].item() for k in seen)


@given(trajectories)
def test_walks_come_in_the_order_given(legal_walk, space, cases):
    given = [make(case, legal_walk, space) for case in cases]
    batch = collate_trees(build_trees(given, space))
    assert batch.length.tolist() == [len(trajectory) for trajectory in given]
    assert batch.terminated.tolist() == [trajectory.terminated for trajectory in given]
    assert batch.is_policy.tolist() == [trajectory.source == "policy" for trajectory in given]
    place = 0
    for index, trajectory in enumerate(given):
        rows = slice(place, place + len(trajectory))
        place += len(trajectory)
        visited = list(states(trajectory, space))
        assert batch.trajectory[rows].tolist() == [index] * len(trajectory)
        assert batch.t[rows].tolist() == list(range(len(trajectory)))
        assert batch.action[rows].tolist() == trajectory.actions.tolist()
        torch.testing.assert_close(batch.weight[rows].double(), torch.tensor(trajectory.action_weights))
        assert [string_at(batch, node) for node in batch.state[rows]] == visited[:-1]
        assert [string_at(batch, node) for node in batch.next[rows]] == visited[1:]
        assert string_at(batch, batch.final[index]) == visited[-1]
    assert place == len(batch.state)


@given(trajectories)
def test_rows_hold_the_trees_and_nothing_else(legal_walk, space, cases):
    given = [make(case, legal_walk, space) for case in cases]
    trees = build_trees(given, space)
    batch = collate_trees(trees)
    length = batch.token.shape[1]
    assert length == max(len(tree) for tree in trees)
    taken = torch.zeros_like(batch.token, dtype=torch.bool)
    for tree in trees:
        walk = tree.walks[0]
        row, column = divmod(int(batch.final[walk.index]) - walk.final, length)
        span = slice(column, column + len(tree))
        assert column + len(tree) <= length
        assert not taken[row, span].any()
        taken[row, span] = True
        assert batch.token[row, span].tolist() == tree.token.tolist()
        assert batch.depth[row, span].tolist() == tree.depth.tolist()
        assert (batch.exit[row, span] - column).tolist() == tree.exit.tolist()
        assert batch.completion_length[row, span].tolist() == tree.completion_length.tolist()
    columns = torch.arange(length).expand_as(batch.exit)
    assert torch.equal(batch.exit[~taken], columns[~taken] + 1)
    for name in ("token", "depth", "completion_length"):
        assert not getattr(batch, name)[~taken].any()


def test_types(space):
    batch = collate_trees(
        build_trees([Trajectory([1], [2, 0], [0.5, 1.0]), Trajectory([1], [3], terminated=False)], space)
    )
    floats, flags = {"weight"}, {"terminated", "is_policy"}
    for field in fields(batch):
        kind = torch.float32 if field.name in floats else torch.bool if field.name in flags else torch.int64
        assert getattr(batch, field.name).dtype == kind, field.name


def test_to_moves_every_tensor(space):
    batch = collate_trees(build_trees([Trajectory([1], [2, 0])], space)).to("meta")
    assert {getattr(batch, field.name).device.type for field in fields(batch)} == {"meta"}


@pytest.mark.parametrize("prompts", [[(1,), (2,), (1,), (2,), (1,)], [(2, 3), (1,), (1,), (2, 3)]])
def test_interleaved_prompts_by_hand(space, prompts):
    given = [Trajectory(prompt, [3 + i % 3, 1, 8, 0]) for i, prompt in enumerate(prompts)]
    batch = collate_trees(build_trees(given, space))
    assert batch.action.reshape(-1, 4)[:, 0].tolist() == [3 + i % 3 for i in range(len(given))]
    assert [string_at(batch, node) for node in batch.state[batch.t == 0]] == prompts


def test_texts_that_share_only_their_first_token_get_rows_of_their_own(space):
    """In one tree their dense mask would be quadratic in all of them together."""
    texts = [Trajectory([0], [3 + (i + j) % 5 for j in range(60)], terminated=False) for i in range(4)]
    assert collate_trees(build_trees(texts, space)).token.shape == (4, 61)


def test_rollouts_that_share_a_long_prompt_share_its_nodes(space):
    prompt = [3] * 50
    rollouts = [Trajectory(prompt, [3 + i, 4, 5], terminated=False) for i in range(4)]
    (tree,) = build_trees(rollouts, space)
    assert len(tree) == 50 + 4 * 3
