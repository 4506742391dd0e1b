"""The vectorised trees are the reference's, array for array, and refuse what it refuses in the same words."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_walks import cases, make

from sequencematch.errors import InputError
from sequencematch.mdp import ActionSpace, Trajectory
from sequencematch.tree import Layout, collate_reference, collate_trajectories, forest
from sequencematch.tree.chains import Chains

layouts = st.builds(Layout, st.sampled_from([0.0, 10.0, 512.0, math.inf]), st.sampled_from([None, 1, 8]))


def assert_equal(batch, expected):
    for field in fields(batch):
        found, wanted = getattr(batch, field.name), getattr(expected, field.name)
        if isinstance(wanted, torch.Tensor):
            assert found.dtype == wanted.dtype, field.name
            assert torch.equal(found, wanted), field.name
        else:
            assert found == wanted, field.name


@settings(max_examples=300)
@given(cases, layouts)
def test_the_same_batch_as_the_reference(legal_walk, space, cases, layout):
    given = [make(case, legal_walk, space) for case in cases]
    assert_equal(collate_trajectories(given, space, layout), collate_reference(given, space, layout))


@given(cases, layouts, st.lists(st.integers(5, 7), min_size=8, max_size=8))
def test_the_same_batch_as_the_reference_in_given_groups(legal_walk, space, cases, layout, groups):
    given = [make(case, legal_walk, space) for case in cases]
    groups = [hash((case[0], group)) for case, group in zip(cases, groups, strict=False)]
    assert_equal(collate_trajectories(given, space, layout, groups), collate_reference(given, space, layout, groups))


@pytest.mark.parametrize("prompt", [[3], [3] * 40])
@pytest.mark.parametrize("node_cost", [0.0, math.inf])
def test_long_walks_with_many_branches(space, legal_walk, prompt, node_cost):
    rng = np.random.default_rng(0)
    wishes = rng.choice([1, 2, 3, 4, 8, 8, 9, 10], (12, 400), p=[0.2, 0.2, 0.2, 0.12, 0.1, 0.1, 0.07, 0.01])
    given = [Trajectory(prompt, legal_walk(row.tolist(), space)) for row in wishes]
    layout = Layout(node_cost)
    assert_equal(collate_trajectories(given, space, layout), collate_reference(given, space, layout))


def test_a_node_with_thousands_of_children():
    space = ActionSpace(10_000, 0)
    given = [Trajectory([1, 2], [token, 0]) for token in range(3000, 6000)] * 2
    batch = collate_trajectories(given, space, Layout(math.inf))
    assert_equal(batch, collate_reference(given, space, Layout(math.inf)))
    assert batch.nodes == 2 + 2 * 3000


def test_a_long_tree(space):
    batch = collate_trajectories([Trajectory([1], [2] * 5000 + [0])], space)
    assert batch.depth.tolist() == list(range(5002))
    assert torch.all(batch.exit == 5002)


@pytest.mark.parametrize("others", [[], [Trajectory([4], [1, 8, 2, 0])]])
def test_trajectories_without_actions(space, others):
    given = [Trajectory([4, 5], [], terminated=False), *others, Trajectory([4], [], terminated=False)]
    batch = collate_trajectories(given, space)
    assert_equal(batch, collate_reference(given, space))
    assert [batch.completion_length[node].item() for node in batch.final[[0, -1]]] == [0, 0]
    assert [batch.depth[node].item() for node in batch.final[[0, -1]]] == [1, 0]


@pytest.mark.parametrize("confused", [lambda code: code * 0, lambda code: code % np.uint64(3)])
def test_a_bad_hash_is_noticed(monkeypatch, space, confused):
    given = [Trajectory([4], [1, 2, 8, 3, 0]), Trajectory([4], [2, 1, 3, 0]), Trajectory([5], [1, 2, 0])]
    seeds = []
    mixed = forest._mixed

    def bad_at_first(code, seed):
        seeds.append(seed)
        return confused(code) if seed < 2 else mixed(code, seed)

    monkeypatch.setattr(forest, "_mixed", bad_at_first)
    batch = collate_trajectories(given, space)
    assert seeds == [0, 1, 2]
    monkeypatch.undo()
    assert_equal(batch, collate_reference(given, space))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.data())
def test_sums_over_paths_and_subtrees(seeds, data):
    # A parent is often the node before, as on real trees, and otherwise any earlier node or none.
    parent = [node - 1 if seed % 3 else seed % (node + 1) - 1 for node, seed in enumerate(seeds)]
    value = np.array(data.draw(st.lists(st.integers(-50, 50), min_size=len(parent), max_size=len(parent))))
    chains = Chains(np.array(parent))
    paths = []
    for node in range(len(parent)):
        paths.append([node])
        while parent[paths[-1][-1]] >= 0:
            paths[-1].append(parent[paths[-1][-1]])
    assert chains.path_sums(value).tolist() == [int(value[path].sum()) for path in paths]
    assert chains.path_sums(value.astype(np.uint64)).dtype == np.uint64
    size = chains.subtree_sizes()
    assert size.tolist() == [sum(node in path for path in paths) for node in range(len(parent))]

    roots = [node for node in range(len(parent)) if parent[node] < 0]
    starts = np.cumsum(size[roots]) - size[roots]
    # Preorder with children in the order of their numbers is the order of paths read from the root.
    expected = sorted(range(len(parent)), key=lambda node: paths[node][::-1])
    assert np.argsort(chains.preorder(size, starts)).tolist() == expected


PROMPT = (4, 8, 0)


@pytest.mark.parametrize(
    "walk",
    [
        Trajectory(PROMPT, [1, 8, 8, 0]),
        Trajectory(PROMPT, [1, 2, 9, 0]),
        Trajectory(PROMPT, [10, 0]),
        Trajectory(PROMPT, [1, 2, 10, 1, 8, 8, 0]),
        Trajectory(PROMPT, [1, 8, 8, 1]),  # a missing end comes first, as it does in mdp.states
        Trajectory(PROMPT, [1, 11, 0]),
        Trajectory([11], [1, 0]),
        Trajectory([11], [], terminated=False),
        Trajectory(PROMPT, [1, 2]),
        Trajectory(PROMPT, [1, 0, 2, 0]),
        Trajectory(PROMPT, [1, 0], terminated=False),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_refuses_bad_walks_in_the_words_of_the_reference(space, walk, place):
    good = [Trajectory(PROMPT, [1, 2, 8, 0]), Trajectory([4], [], terminated=False)]
    given = [*good[:place], walk, *good[place:]]
    with pytest.raises(InputError) as expected:
        collate_reference([walk], space)
    with pytest.raises(InputError) as found:
        collate_trajectories(given, space)
    assert str(found.value) == str(expected.value)


def test_the_first_bad_walk_is_named(space):
    given = [Trajectory(PROMPT, [1, 0]), Trajectory(PROMPT, [8, 0]), Trajectory(PROMPT, [1, 1, 9, 0])]
    with pytest.raises(InputError, match=r"action 0 \(token 8\) deletes more than the 0"):
        collate_trajectories(given, space)
    with pytest.raises(InputError, match=r"action 2 \(token 9\) deletes more than the 2"):
        collate_trajectories(given[::-1], space)
