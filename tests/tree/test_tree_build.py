"""The reference tree holds every state once, and its walks visit exactly the states of the token MDP."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequencematch.errors import InputError
from sequencematch.mdp import Trajectory, states
from sequencematch.tree import StateTree

PROMPT = (4, 8, 0)
# Few letters, so that walks meet; 8, 9 and 10 delete 1, 3 and all.
wishes = st.lists(st.lists(st.sampled_from([1, 1, 2, 3, 8, 8, 9, 10]), max_size=14), min_size=1, max_size=4)
flags = st.lists(st.booleans(), min_size=4, max_size=4)


def strings_of(tree):
    """Every node's string, from token, depth and exit alone."""
    strings = []
    for node in range(len(tree)):
        ancestors = [k for k in range(node + 1) if k <= node < tree.exit[k]]
        strings.append(tuple(int(tree.token[k]) for k in ancestors))
    return strings


def assert_preorder(depth, exit, n):
    """Depths start at 0, grow by 1 at most, and a node's subtree is the run of deeper nodes after it."""
    assert depth[0] == 0
    for node in range(n):
        end = node + 1
        while end < n and depth[end] > depth[node]:
            end += 1
        assert exit[node] == end
        assert node == 0 or 0 < depth[node] <= depth[node - 1] + 1


@given(wishes, flags)
def test_a_tree_is_its_states(legal_walk, space, wishes, flags):
    walks = [
        Trajectory(PROMPT, legal_walk(actions, space, end), terminated=end)
        for actions, end in zip(wishes, flags, strict=False)
    ]
    tree = StateTree.build(walks, space)
    strings = strings_of(tree)
    visited = [list(states(walk, space)) for walk in walks]

    assert_preorder(tree.depth, tree.exit, len(tree))
    assert tree.depth.tolist() == [len(string) - 1 for string in strings]
    assert tree.completion_length.tolist() == [max(len(string) - len(PROMPT), 0) for string in strings]
    prefixes = {PROMPT[: i + 1] for i in range(len(PROMPT))}
    assert len(set(strings)) == len(strings)
    assert set(strings) == prefixes.union(*visited)
    assert tree.prompt_length == len(PROMPT)

    assert len(tree.walks) == len(walks)
    for index, (walk, trajectory, expected) in enumerate(zip(tree.walks, walks, visited, strict=True)):
        assert walk.trajectory is trajectory
        assert walk.index == index
        assert strings[walk.start] == PROMPT
        assert [strings[node] for node in walk.state] == expected[:-1]
        assert [strings[node] for node in walk.next] == expected[1:]
        assert strings[walk.final] == expected[-1]


@given(wishes, st.integers(1, 3), st.integers(0, 20))
def test_append_then_backspace_visits_one_node_and_returns(legal_walk, space, wishes, token, place):
    actions = legal_walk(wishes[0], space)
    place = min(place, len(actions) - 1)  # before eos at the latest
    detour = [*actions[:place], token, 8, *actions[place:]]
    plain = StateTree.build([Trajectory(PROMPT, actions)], space)
    tree = StateTree.build([Trajectory(PROMPT, detour)], space)
    walk = tree.walks[0]
    assert walk.next[place + 1] == walk.state[place]
    strings = strings_of(tree)
    assert set(strings) == set(strings_of(plain)) | {strings[walk.next[place]]}
    assert strings[walk.next[place]] == (*strings[walk.state[place]], token)


def test_the_same_string_is_the_same_node(space):
    one = Trajectory(PROMPT, [1, 2, 8, 8, 1, 2, 10, 1, 2, 3, 0])
    two = Trajectory(PROMPT, [1, 2, 3, 9, 1, 2, 3], terminated=False)
    tree = StateTree.build([one, two], space)
    assert len(tree) == len(PROMPT) + 4  # 1, 12, 123 and 123<eos>
    first, second = tree.walks
    assert first.next[[1, 5, 8]].tolist() == [first.next[1]] * 3
    assert first.state[[0, 4, 7]].tolist() == [first.start] * 3
    assert second.next.tolist()[2] == second.final == first.next[9] == first.state[10]
    assert tree.exit[first.final] == first.final + 1


def test_no_actions(space):
    tree = StateTree.build([Trajectory(PROMPT, [], terminated=False)], space)
    walk = tree.walks[0]
    assert len(tree) == 3
    assert len(walk.state) == len(walk.next) == 0
    assert walk.final == walk.start == 2


def test_indices_number_the_walks(space):
    walks = [Trajectory(PROMPT, [1, 0]), Trajectory(PROMPT, [2, 0])]
    assert [walk.index for walk in StateTree.build(walks, space, [7, 3]).walks] == [7, 3]
    with pytest.raises(ValueError, match="zip"):
        StateTree.build(walks, space, [7])


def test_a_long_tree_needs_no_recursion(space):
    tree = StateTree.build([Trajectory([1], [2] * 5000 + [0])], space)
    assert tree.depth.tolist() == list(range(5002))
    assert np.all(tree.exit == 5002)


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        (Trajectory(PROMPT, [1, 8, 8, 0]), "a prompt is never deleted"),
        (Trajectory(PROMPT, [1, 2, 9, 0]), "a prompt is never deleted"),
        (Trajectory(PROMPT, [10, 0]), "a prompt is never deleted"),
        (Trajectory(PROMPT, [1, 11, 0]), "token id 11 in the actions"),
        (Trajectory([11], [1, 0]), "token id 11 in the prompt"),
        (Trajectory(PROMPT, [1, 2]), "terminated"),
        (Trajectory(PROMPT, [1, 0], terminated=False), "mark it terminated"),
    ],
)
def test_refuses_bad_walks(space, walk, message):
    with pytest.raises(InputError, match=message):
        StateTree.build([walk], space)


def test_refuses_mixed_prompts_and_no_walks(space):
    with pytest.raises(InputError, match="one prompt; give each prompt a group of its own"):
        StateTree.build([Trajectory([1], [0]), Trajectory([2], [0])], space)
    with pytest.raises(InputError, match="one prompt; give each prompt a group of its own"):
        StateTree.build([Trajectory([1], [2, 0]), Trajectory([1, 2], [0])], space)
    with pytest.raises(InputError, match="at least one trajectory"):
        StateTree.build([], space)
