"""Whatever mistakes are made, they are taken back: the expert's completion is what survives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequencematch.data import Example
from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, replay
from sequencematch.noise import Mistake, demonstrate

EOS = 0
LENGTHS = {"backspace": [1], "reset": [ALL], "both": [1, ALL], "one and three": [1, 3], "three": [3]}


def space_of(name):
    return ActionSpace(11, EOS, tuple(Deletion(8 + i, length) for i, length in enumerate(LENGTHS[name])))


def example_of(completion):
    return Example((5, 6), tuple(completion), "", "")


def mistakes_in(positions, runs):
    """Runs of tokens at ascending positions."""
    return [Mistake(position, tuple(run)) for position, run in zip(sorted(positions), runs, strict=False)]


def cases(expert, wrong):
    """Completions of `expert` tokens, and runs of `wrong` tokens with the places where they go."""
    completions = st.lists(st.sampled_from(expert), min_size=1, max_size=8)
    runs = st.lists(st.lists(st.sampled_from(wrong), min_size=1, max_size=5), max_size=4)
    return st.tuples(completions, runs, st.lists(st.integers(0, 7), min_size=4, max_size=4), st.booleans())


def read(case):
    completion, runs, positions, ends = case
    completion = [*completion, EOS] if ends else completion
    mistakes = mistakes_in([position % len(completion) for position in positions[: len(runs)]], runs)
    return example_of(completion), mistakes


@pytest.mark.parametrize("name", ["backspace", "reset", "both", "one and three"])
@given(case=cases([1, 2, 3], [1, 2, 3]), weight=st.floats(0, 1))
def test_the_expert_survives(name, case, weight):
    example, mistakes = read(case)
    space = space_of(name)
    trajectory = demonstrate(example, mistakes, space, weight)
    ends = example.completion_ids[-1] == EOS
    assert trajectory.terminated == ends
    assert trajectory.source == "expert"
    assert trajectory.prompt_ids.tolist() == [5, 6]
    survivors = example.completion_ids[:-1] if ends else example.completion_ids
    assert replay(trajectory, space).completion == survivors


@pytest.mark.parametrize("name", ["backspace", "reset", "both", "one and three"])
@given(case=cases([1, 2, 3], [5, 6, 7]), weight=st.sampled_from([0.0, 0.25, 1.0]))
def test_only_wrong_tokens_are_weighted_down(name, case, weight):
    example, mistakes = read(case)
    trajectory = demonstrate(example, mistakes, space_of(name), weight)
    made = [token for token in trajectory.actions.tolist() if token in (5, 6, 7)]
    assert made == [token for mistake in mistakes for token in mistake.tokens]
    expected = [weight if token in (5, 6, 7) else 1.0 for token in trajectory.actions.tolist()]
    assert trajectory.action_weights.tolist() == expected


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        ("backspace", [1, 2, 5, 6, 7, 8, 8, 8, 3, 4, 6, 8, EOS]),
        ("reset", [1, 2, 5, 6, 7, 8, 1, 2, 3, 4, 6, 8, 1, 2, 3, 4, EOS]),
        ("both", [1, 2, 5, 6, 7, 8, 8, 8, 3, 4, 6, 8, EOS]),
        ("one and three", [1, 2, 5, 6, 7, 9, 3, 4, 6, 8, EOS]),
    ],
)
def test_by_hand(name, actions):
    """Wrong tokens come instead of the expert's at that place; the fewest deletions take them back."""
    example = example_of([1, 2, 3, 4, EOS])
    trajectory = demonstrate(example, [Mistake(2, (5, 6, 7)), Mistake(4, (6,))], space_of(name), 0.5)
    assert trajectory.actions.tolist() == actions


def test_a_reset_at_the_start_is_one_action():
    trajectory = demonstrate(example_of([1, 2, EOS]), [Mistake(0, (5, 6, 7))], space_of("both"))
    assert trajectory.actions.tolist() == [5, 6, 7, 9, 1, 2, EOS]


def test_two_mistakes_in_one_place():
    trajectory = demonstrate(example_of([1, EOS]), [Mistake(1, (5,)), Mistake(1, (6,))], space_of("backspace"))
    assert trajectory.actions.tolist() == [1, 5, 8, 6, 8, EOS]


@pytest.mark.parametrize("name", LENGTHS)
def test_no_mistakes_is_the_expert(name):
    assert demonstrate(example_of([1, 2, EOS]), [], space_of(name), 0.0) == Trajectory([5, 6], [1, 2, EOS])
    assert demonstrate(example_of([1, 2]), [], space_of(name)) == Trajectory([5, 6], [1, 2], terminated=False)


@pytest.mark.parametrize("position", [3, 4, -1])
def test_positions_beyond_the_completion(position):
    with pytest.raises(InputError, match=f"below 3, not at {position}"):
        demonstrate(example_of([1, 2, EOS]), [Mistake(position, (5,))], space_of("backspace"))


def test_positions_ascend():
    with pytest.raises(InputError, match="ascending positions below 3, not at 0"):
        demonstrate(example_of([1, 2, EOS]), [Mistake(1, (5,)), Mistake(0, (6,))], space_of("backspace"))


@pytest.mark.parametrize("space", [space_of("three"), ActionSpace(11, EOS)])
def test_mistakes_that_nothing_takes_back(space):
    with pytest.raises(InputError, match="no deletion action leads from 2 completion tokens back to 1"):
        demonstrate(example_of([1, 2, EOS]), [Mistake(1, (5,))], space)


def test_weights_outside_their_range():
    with pytest.raises(InputError, match="between 0 and 1"):
        demonstrate(example_of([1, EOS]), [Mistake(0, (5,))], space_of("backspace"), 1.5)


def test_trajectories_are_of_integers():
    assert demonstrate(example_of([1]), [], space_of("backspace")).actions.dtype == np.int64
