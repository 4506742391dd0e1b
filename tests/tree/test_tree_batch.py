"""Batches of trees: nothing lost, nothing shared, walks in the order the trajectories came in."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_walks import cases, make, row_spans, string_at

from sequencematch.errors import InputError
from sequencematch.mdp import Trajectory, states
from sequencematch.tree import Layout, StateTree, collate_trajectories
from sequencematch.tree.batch import assign_trees

layouts = st.builds(Layout, st.sampled_from([0.0, 512.0, math.inf]), st.sampled_from([None, 8]))


@given(cases, layouts)
def test_walks_come_in_the_order_given(legal_walk, space, cases, layout):
    given = [make(case, legal_walk, space) for case in cases]
    batch = collate_trajectories(given, space, layout)
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


@given(cases, layouts)
def test_rows_hold_the_trees_and_nothing_else(legal_walk, space, cases, layout):
    given = [make(case, legal_walk, space) for case in cases]
    batch = collate_trajectories(given, space, layout)
    numbers = assign_trees(given, layout)
    taken = torch.zeros_like(batch.token, dtype=torch.bool)
    for number in set(numbers):
        members = [i for i in range(len(given)) if numbers[i] == number]
        tree = StateTree.build([given[i] for i in members], space, members)
        walk = tree.walks[0]
        start = int(batch.final[walk.index]) - walk.final
        span = slice(start, start + len(tree))
        assert any(first <= start and start + len(tree) <= last for first, last in row_spans(batch.tiles))
        assert not taken[span].any()
        taken[span] = True
        assert batch.token[span].tolist() == tree.token.tolist()
        assert batch.depth[span].tolist() == tree.depth.tolist()
        assert (batch.exit[span] - start).tolist() == tree.exit.tolist()
        assert batch.completion_length[span].tolist() == tree.completion_length.tolist()
    assert taken.sum() == batch.nodes
    assert len(taken) == sum(rows * length for rows, length in batch.tiles)
    for first, last in row_spans(batch.tiles):
        filled = int(taken[first:last].sum())
        assert taken[first : first + filled].all()  # padding is at the right end
    assert torch.equal(batch.exit[~taken], torch.arange(len(taken))[~taken] + 1)
    for name in ("token", "depth", "completion_length"):
        assert not getattr(batch, name)[~taken].any()


def tensors_of(batch):
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def test_types(space):
    batch = collate_trajectories([Trajectory([1], [2, 0], [0.5, 1.0]), Trajectory([1], [3], terminated=False)], space)
    floats, flags = {"weight"}, {"terminated", "is_policy"}
    for name, tensor in tensors_of(batch).items():
        kind = torch.float32 if name in floats else torch.bool if name in flags else torch.int64
        assert tensor.dtype == kind, name
        assert tensor.ndim == 1, name


def test_to_moves_every_tensor(space):
    batch = collate_trajectories([Trajectory([1], [2, 0])], space)
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}
    assert moved.tiles == batch.tiles == ((1, 3),)
    assert moved.causal == batch.causal == (True,)
    assert moved.nodes == batch.nodes == 3


def test_a_tile_is_causal_where_each_row_is_one_string(space):
    long, short = [Trajectory([4], [1, 2, 3, 2, 0]), Trajectory([5], [1, 2, 3, 0])], Trajectory([6], [0])
    for walks, causal in ((long, True), ([*long, short], True)):
        batch = collate_trajectories(walks, space)
        assert batch.causal[0] == causal, batch.tiles
    branching = [Trajectory([4], [1, 8, 2, 3, 0])]
    assert collate_trajectories(branching, space).causal == (False,)
    assert collate_trajectories([*long, Trajectory([7], [], terminated=False)], space).causal == (False,)


@pytest.mark.parametrize("prompts", [[(1,), (2,), (1,), (2,), (1,)], [(2, 3), (1,), (1,), (2, 3)]])
def test_interleaved_prompts_by_hand(space, prompts):
    given = [Trajectory(prompt, [3 + i % 3, 1, 8, 0]) for i, prompt in enumerate(prompts)]
    batch = collate_trajectories(given, space)
    assert batch.action.reshape(-1, 4)[:, 0].tolist() == [3 + i % 3 for i in range(len(given))]
    assert [string_at(batch, node) for node in batch.state[batch.t == 0]] == prompts


def test_trees_by_prompt_in_order_of_first_appearance(space):
    given = [Trajectory(prompt, [3, 0]) for prompt in [(1,), (2,), (1,), (1, 1), (2,)]]
    assert assign_trees(given, Layout()) == [0, 1, 0, 2, 1]


TEXTS = [Trajectory([0], [3 + (i + j) % 5 for j in range(60)], terminated=False) for i in range(4)]


def test_texts_that_share_only_their_first_token_get_rows_of_their_own(space):
    """In one tree their dense mask would be quadratic in all of them together."""
    assert collate_trajectories(TEXTS, space).tiles == ((4, 61),)


@pytest.mark.parametrize(("node_cost", "tiles"), [(math.inf, ((1, 241),)), (61 * 60, ((2, 121),)), (0.0, ((4, 61),))])
def test_what_a_node_costs_decides_what_is_shared(space, node_cost, tiles):
    assert collate_trajectories(TEXTS, space, Layout(node_cost)).tiles == tiles


def test_rollouts_that_share_a_long_prompt_share_its_nodes(space):
    prompt = [3] * 50
    rollouts = [Trajectory(prompt, [3 + i, 4, 5], terminated=False) for i in range(4)]
    batch = collate_trajectories(rollouts, space)
    assert batch.nodes == 50 + 4 * 3
    assert batch.tiles == ((1, 62),)


def test_groups_say_what_is_shared(space):
    given = [Trajectory([1, 2], [3, 4, 0]) for _ in range(4)]
    assert collate_trajectories(given, space, groups=[7, 7, 7, 7]).tiles == ((1, 5),)
    batch = collate_trajectories(given, space, groups=[9, 4, 9, 4])
    assert batch.tiles == ((2, 5),)
    assert batch.final.tolist() == [4, 9, 4, 9]
    assert collate_trajectories(TEXTS, space, groups=[0] * 4).tiles == ((1, 241),)
    with pytest.raises(ValueError, match="zip"):
        collate_trajectories(given, space, groups=[0])


def test_refuses_no_trajectories_and_groups_of_two_prompts(space):
    with pytest.raises(InputError, match="at least one trajectory"):
        collate_trajectories([], space)
    with pytest.raises(InputError, match="at least one trajectory"):
        collate_trajectories([], space, groups=[])
    given = [Trajectory([1], [2, 0]), Trajectory([1, 2], [0]), Trajectory([1], [0])]
    with pytest.raises(InputError, match="one prompt; give each prompt a group of its own"):
        collate_trajectories(given, space, groups=[0, 0, 1])
    assert collate_trajectories(given, space, groups=[0, 1, 0]).nodes == 7


def test_a_row_multiple_puts_every_tree_into_one_row(space):
    given = [Trajectory([4, 5], [1, 2, 0]), Trajectory([6], [0]), Trajectory([4, 5], [1, 3, 0])]
    batch = collate_trajectories(given, space, Layout(row_multiple=8))
    assert batch.tiles == ((1, 16),)
    assert batch.nodes == 9
    assert batch.exit.tolist() == [7, 7, 7, 5, 5, 7, 7, 9, 9, *range(10, 17)]
    assert batch.final.tolist() == [4, 8, 6]
