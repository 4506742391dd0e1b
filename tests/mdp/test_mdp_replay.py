"""Replay against a simulation that shares nothing with it: completions as texts, deletions as string slices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, replay, states

EOS, ONE, TWO, RESET = 0, 7, 8, 9
SPACE = ActionSpace(10, EOS, (Deletion(ONE, 1), Deletion(TWO, 2), Deletion(RESET, ALL)))
PROMPT = (3, 7, 0)  # a prompt may hold any token, deletions and eos included: it is only text


def simulate(actions):
    """The completion as a text of digits after each action; stops before the first illegal one."""
    text, seen = "", [""]
    for action in actions:
        if action == RESET:
            if text == "":
                return seen, False
            text = ""
        elif action in (ONE, TWO):
            gone = {ONE: 1, TWO: 2}[action]
            if len(text) < gone:
                return seen, False
            text = text[: len(text) - gone]
        else:
            text += str(action)
        seen.append(text)
    return seen, True


@given(st.lists(st.sampled_from([1, 2, ONE, ONE, TWO, RESET]), max_size=25), st.booleans())
def test_replay_equals_the_simulation(actions, terminated):
    if terminated:
        actions = [*actions, EOS]
    trajectory = Trajectory(PROMPT, actions, terminated=terminated)
    texts, legal = simulate(actions)
    if not legal:
        with pytest.raises(InputError, match=rf"action {len(texts) - 1} .* a prompt is never deleted"):
            replay(trajectory, SPACE)
        with pytest.raises(InputError, match="a prompt is never deleted"):
            list(states(trajectory, SPACE))
        return
    result = replay(trajectory, SPACE)
    assert result.lengths == tuple(len(text) for text in texts)
    final = texts[-1][:-1] if terminated else texts[-1]
    assert result.completion == tuple(int(digit) for digit in final)
    expected = [PROMPT + tuple(int(digit) for digit in text) for text in texts]
    assert list(states(trajectory, SPACE)) == expected


def test_the_empty_walk():
    assert replay(Trajectory(PROMPT, [], terminated=False), SPACE).lengths == (0,)
    assert list(states(Trajectory(PROMPT, [], terminated=False), SPACE)) == [PROMPT]


@pytest.mark.parametrize("actions", [[ONE], [1, TWO], [RESET], [1, ONE, ONE], [1, 2, RESET, RESET], [1, 2, TWO, ONE]])
def test_the_prompt_is_never_deleted(actions):
    with pytest.raises(InputError, match=rf"action {len(actions) - 1} \(token {actions[-1]}\)"):
        replay(Trajectory(PROMPT, actions, terminated=False), SPACE)


@pytest.mark.parametrize("actions", [[1, 2], [EOS, 1], [EOS, EOS], [1, EOS, ONE]])
def test_a_terminated_walk_ends_with_its_only_eos(actions):
    with pytest.raises(InputError, match="as its last action and nowhere else"):
        replay(Trajectory(PROMPT, actions), SPACE)


@pytest.mark.parametrize("actions", [[1, EOS], [EOS, 1], [EOS]])
def test_a_truncated_walk_has_no_eos(actions):
    with pytest.raises(InputError, match="mark it terminated"):
        replay(Trajectory(PROMPT, actions, terminated=False), SPACE)


def test_tokens_out_of_range():
    with pytest.raises(InputError, match="token id 10 in the prompt"):
        replay(Trajectory([10], [EOS]), SPACE)
    with pytest.raises(InputError, match="token id 12 in the actions"):
        replay(Trajectory([1], [12, EOS]), SPACE)
