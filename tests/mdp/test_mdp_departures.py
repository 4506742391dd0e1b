"""Departures from the expert's way against the states they lead through."""

import numpy as np
import pytest

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, departures, states

EOS, A, B, C, BKSP, BACK2, RESET = range(7)
SPACE = ActionSpace(7, EOS, (Deletion(BKSP, 1), Deletion(BACK2, 2), Deletion(RESET, ALL)))


def rollout(*actions):
    return Trajectory([B], actions, terminated=actions[-1:] == (EOS,), source="policy", policy_version=0)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ((A, B, EOS), [0, 0, 0]),
        ((A, C, BKSP, B, EOS), [0, 1, 1, 0, 0]),
        ((A, B, BKSP, B, EOS), [0, 0, 1, 0, 0]),  # the expert deletes nothing, but what is left is on its way
        ((C, B, RESET, A, B, EOS), [1, 1, 1, 0, 0, 0]),
        ((A, C, C, BACK2, B, EOS), [0, 1, 1, 1, 0, 0]),
        ((A, C, C, BKSP, B, EOS), [0, 1, 1, 1, 1, 1]),  # one of two wrong tokens is still there
        ((A, B, C), [0, 0, 1]),
        ((A, B), [0, 0]),
        ((EOS,), [1]),
        ((A, EOS), [0, 1]),
        ((), []),
    ],
)
def test_by_hand(actions, expected):
    assert departures(rollout(*actions), (A, B, EOS), SPACE).tolist() == [bool(x) for x in expected]


@pytest.mark.parametrize("seed", range(20))
def test_any_walk_departs_unless_it_leads_from_prefix_to_longer_prefix(seed):
    rng = np.random.default_rng(seed)
    expert, actions, length = (A, B, A, EOS), [], 0
    while len(actions) < 30 and EOS not in actions:
        legal = [action for action in (A, A, B, B, C, EOS, BKSP, BACK2, RESET) if SPACE.is_legal(action, length)]
        actions.append(int(rng.choice(legal)))
        length = SPACE.next_length(actions[-1], length)
    walk = rollout(*actions)
    strings = [tuple(state[1:]) for state in states(walk, SPACE)]
    on_the_way = [string == expert[: len(string)] for string in strings]
    lengths = [len(string) for string in strings]
    expected = [not (on_the_way[t] and on_the_way[t + 1] and lengths[t + 1] > lengths[t]) for t in range(len(actions))]
    assert departures(walk, expert, SPACE).tolist() == expected


def test_an_illegal_action_is_refused():
    with pytest.raises(InputError, match="deletes more than"):
        departures(rollout(A, BACK2), (A, EOS), SPACE)
