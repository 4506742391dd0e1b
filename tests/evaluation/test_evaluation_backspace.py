import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequencematch import InputError
from sequencematch.evaluation.backspace import deletion_statistics, deletions_of, run_lengths
from sequencematch.evaluation.statistics import proportion_interval, ratio_interval
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, replay, states
from sequencematch.rollouts import Rollout
from sequencematch.training.metrics import rollout_metrics

EOS, BKSP, PAIR, RESET = 0, 8, 9, 10
SPACE = ActionSpace(11, EOS, (Deletion(BKSP, 1), Deletion(PAIR, 2), Deletion(RESET, ALL)))
A, B, C, D = 1, 2, 3, 4


def rollout(*actions):
    terminated = actions[-1:] == (EOS,)
    trajectory = Trajectory(np.array([5]), np.array(actions, int), None, terminated, "policy", 0)
    completion = replay(trajectory, SPACE).completion
    return Rollout(trajectory, np.zeros(len(actions)), completion, "eos" if terminated else "max_actions")


def deletions_by_definition(trajectory):
    """From the strings of all states."""
    strings, actions = list(states(trajectory, SPACE)), trajectory.actions.tolist()
    found = []
    for t, action in enumerate(actions):
        if action not in SPACE.by_token:
            continue
        before, after = strings[t], strings[t + 1]
        later = range(t + 1, len(actions))
        appends = [u for u in later if strings[u] == after and actions[u] not in SPACE.by_token]
        visits = [u for u in range(t + 1, len(strings)) if strings[u] == before]
        landing = len(after) - len(trajectory.prompt_ids)
        tokens = before[len(after) :]
        found.append((t, landing, tokens, min(appends, default=None), min(visits, default=None)))
    return found


WISHES = st.lists(st.sampled_from([A, B, BKSP, PAIR, RESET]), max_size=24)


@given(wishes=WISHES, terminated=st.booleans())
def test_deletions_are_those_of_the_strings(legal_walk, wishes, terminated):
    walk = rollout(*legal_walk(wishes, SPACE, terminated)).trajectory
    found = deletions_of(walk, SPACE)
    assert [(d.t, d.landing, d.tokens, d.replaced_at, d.returned_at) for d in found] == deletions_by_definition(walk)


@settings(max_examples=20)
@given(walks=st.lists(WISHES, min_size=1, max_size=4))
def test_counts_are_those_that_training_logs(legal_walk, walks):
    rollouts = [rollout(*legal_walk(wishes, SPACE)) for wishes in walks]
    found, logged = (
        deletion_statistics(rollouts, SPACE),
        rollout_metrics([rollout.trajectory for rollout in rollouts], SPACE),
    )
    assert found.rate.estimate == pytest.approx(logged["backspace/rate"])
    assert (found.mean_run.estimate if found.mean_run else 0) == pytest.approx(logged["backspace/mean_run"])
    assert (found.at_boundary.estimate if found.at_boundary else 0) == pytest.approx(logged["backspace/at_boundary"])
    assert sum(found.runs.values()) == sum(len(run_lengths(deletions_of(one.trajectory, SPACE))) for one in rollouts)
    assert sum(length * count for length, count in found.runs.items()) == found.deletions
    for histogram in (found.removed, found.positions):
        assert sum(histogram.values()) == found.deletions
    assert sum(found.relative_positions) == found.deletions


@pytest.fixture
def rollouts():
    return [
        rollout(A, B, C, D, EOS),  # nothing is deleted
        rollout(A, B, BKSP, C, D, PAIR, C, EOS),  # runs of 1 and 1; ends as A C; C is repeated, D is not
        rollout(A, B, BKSP, BKSP, A, B, EOS),  # a run of 2; both states are reached again, after 4 and 2 actions
        rollout(A, RESET, C, D, A, RESET),  # two runs of 1; ends as nothing
    ]


def test_statistics_by_hand(rollouts):
    found = deletion_statistics(rollouts, SPACE)
    assert (found.rollouts, found.actions, found.deletions) == (4, 5 + 8 + 7 + 6, 6)
    assert found.rate.estimate == pytest.approx(6 / 26)
    assert found.deleting.estimate == 3 / 4
    assert found.runs == {1: 4, 2: 1}
    assert found.mean_run.estimate == pytest.approx(6 / 5)
    assert found.removed == {1: 4, 2: 1, 3: 1}
    assert found.mean_removed.estimate == pytest.approx(9 / 6)
    assert found.positions == {0: 3, 1: 3}
    # Half of the way into A C, twice; half of the way into A B and its beginning; twice the beginning of nothing.
    assert found.relative_positions == (3, 0, 0, 0, 0, 3, 0, 0, 0, 0)
    assert found.at_boundary.estimate == pytest.approx(3 / 6)
    # C after PAIR, and both of A B; the last RESET is followed by nothing, the first by another token.
    assert found.repeated.estimate == pytest.approx(3 / 6)
    assert found.returned.estimate == pytest.approx(2 / 6)
    assert found.loops == {2: 1, 4: 1}


def test_intervals_are_over_rollouts(rollouts):
    found = deletion_statistics(rollouts, SPACE)
    assert found.rate == ratio_interval([0, 2, 2, 2], [5, 8, 7, 6])
    assert found.deleting == proportion_interval(3, 4)
    assert found.mean_run == ratio_interval([0, 2, 2, 2], [0, 2, 1, 2])
    assert found.mean_removed == ratio_interval([0, 3, 2, 4], [0, 2, 2, 2])
    assert found.at_boundary == ratio_interval([0, 0, 1, 2], [0, 2, 2, 2])
    assert found.repeated == ratio_interval([0, 1, 2, 0], [0, 2, 2, 2])
    assert found.returned == ratio_interval([0, 0, 2, 0], [0, 2, 2, 2])


def test_what_lies_beyond_the_final_text_is_in_the_last_bin():
    found = deletion_statistics([rollout(A, B, C, BKSP, BKSP, BKSP, D, EOS), rollout(A, B, BKSP, RESET)], SPACE)
    assert found.positions == {0: 2, 1: 2, 2: 1}
    assert found.relative_positions == (2, 0, 0, 0, 0, 0, 0, 0, 0, 3)


def test_a_longer_way_round():
    """B is deleted, C tried instead and deleted, B written again: from A B back to it in four actions."""
    first, second = deletions_of(rollout(A, B, BKSP, C, BKSP, B, EOS).trajectory, SPACE)
    assert (first.replaced_at, first.returned_at) == (3, 6)
    assert (second.replaced_at, second.returned_at) == (5, None)


def test_replaced_by_the_end():
    (only,) = deletions_of(rollout(A, B, BKSP, EOS).trajectory, SPACE)
    assert only.replaced_at == 3


def test_without_deletions_there_is_no_share_of_them():
    for space in (SPACE, ActionSpace(11, EOS)):
        found = deletion_statistics([rollout(A, B, EOS), rollout(A)], space)
        assert (found.deletions, found.rate.estimate, found.deleting.estimate) == (0, 0, 0)
        assert found.mean_run is found.mean_removed is found.at_boundary is found.repeated is found.returned is None
        assert found.runs == found.removed == found.positions == found.loops == {}
        assert found.relative_positions == (0,) * 10


def test_rollouts_that_were_cut_before_they_did_anything():
    found = deletion_statistics([rollout()], SPACE)
    assert found.rate is None
    assert found.deleting.n == 1


def test_nothing_to_count_in():
    with pytest.raises(InputError, match="at least one rollout"):
        deletion_statistics([], SPACE)


def test_a_walk_of_another_space():
    walk = Trajectory(np.array([5]), np.array([A, PAIR]), None, False, "policy", 0)
    with pytest.raises(InputError, match="a prompt is never deleted"):
        deletions_of(walk, SPACE)
