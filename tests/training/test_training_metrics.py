import numpy as np
import pytest
import torch

from sequencematch.data import Example
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory
from sequencematch.models import evaluate_states, mask_illegal, steps_of, tree_logits
from sequencematch.noise import Mistake, demonstrate
from sequencematch.rollouts import Rollout
from sequencematch.training.metrics import Means, detection, rollout_metrics, value_metrics
from sequencematch.tree import collate_trajectories

A, B, C, D = 1, 2, 3, 4


def rollout(actions, completion, space):
    trajectory = Trajectory(np.array([5]), np.array(actions), None, True, "policy", 0)
    return Rollout(trajectory, np.zeros(len(actions)), tuple(completion), "eos")


def test_how_rollouts_delete(space):
    bksp, eos = 8, space.eos_token_id
    walks = [
        rollout([A, B, bksp, bksp, C, eos], [C], space),  # one run of two, the second of which empties
        rollout([A, bksp, A, B, bksp, eos], [A], space),  # two runs, the first of which empties
    ]
    found = rollout_metrics([walk.trajectory for walk in walks], space)
    assert found["backspace/rate"] == pytest.approx(4 / 12)
    assert found["backspace/mean_run"] == pytest.approx(4 / 3)
    assert found["backspace/at_boundary"] == pytest.approx(2 / 4)
    assert found["completions/mean_length"] == 1
    assert found["completions/mean_actions"] == 6
    assert found["completions/truncated"] == 0


def test_rollouts_without_deletions_divide_by_nothing(space):
    found = rollout_metrics([rollout([A, space.eos_token_id], [A], space).trajectory], space)
    assert found["backspace/rate"] == found["backspace/mean_run"] == found["backspace/at_boundary"] == 0


@torch.no_grad()
def deletion_probability(model, string, completion_length, space):
    """By its definition, from a forward on the string alone."""
    logits = model(input_ids=torch.tensor([string])).logits[0, -1]
    policy = mask_illegal(logits, torch.tensor(completion_length), space).softmax(-1)
    return float(policy[list(space.by_token)].sum())


def test_detection_is_the_policys_probability_at_wrong_and_at_right_states(tiny_model, space):
    model = tiny_model()
    eos = space.eos_token_id
    example = Example((5,), (A, B, C, eos), "", "")
    noisy = demonstrate(example, [Mistake(1, (D, D))], space)  # A D D <del..> B C eos
    policy = Trajectory(np.array([5]), np.array([D, 8, A, eos]), None, True, "policy", 0)
    batch = collate_trajectories([noisy, policy], space)
    with torch.no_grad():
        found = detection(batch, evaluate_states(model, batch, space), space)
        by_hand = steps_of(tree_logits(model, batch), batch, space)
    for name, value in detection(batch, by_hand, space).items():
        torch.testing.assert_close(found[name], value)
    wrong = [deletion_probability(model, [5, A, D, D], 3, space), deletion_probability(model, [5, A, D], 2, space)]
    # After A: before the mistake and after it was taken back, which are the same state; then after B and after C.
    at_a, at_b, at_c = (deletion_probability(model, [5, A, B, C][: 2 + k], 1 + k, space) for k in range(3))
    assert float(found["backspace/after_wrong"]) == pytest.approx(np.mean(wrong), abs=1e-5)
    assert float(found["backspace/after_right"]) == pytest.approx(np.mean([at_a, at_a, at_b, at_c]), abs=1e-5)


def test_detection_has_nothing_to_say_where_nothing_can_be_deleted(tiny_model):
    space = ActionSpace(11, 0, (Deletion(8, ALL),))
    batch = collate_trajectories([Trajectory(np.array([5]), np.array([0]))], space)
    assert detection(batch, evaluate_states(tiny_model(), batch, space), space) == {}


def test_without_deletion_actions_nothing_is_deleted(tiny_model):
    space = ActionSpace(11, 0)
    batch = collate_trajectories([Trajectory(np.array([5]), np.array([A, B, 0]))], space)
    steps = evaluate_states(tiny_model(), batch, space)
    assert steps.deletes.tolist() == [0, 0, 0]
    assert detection(batch, steps, space) == {}


def test_deletion_probabilities_carry_no_gradient(tiny_model, space):
    batch = collate_trajectories([Trajectory(np.array([5]), np.array([A, 8, B, 0]))], space)
    steps = evaluate_states(tiny_model(), batch, space)
    assert not steps.deletes.requires_grad
    # Illegal on the empty completion, where the first action and the one after the backspace are taken.
    assert steps.deletes[0] == steps.deletes[2] == 0
    assert steps.subset(torch.tensor([True])).deletes.tolist() == steps.deletes.tolist()


def test_values(tiny_model, space):
    batch = collate_trajectories([Trajectory(np.array([5]), np.array([A, B, 0]))], space)
    steps = evaluate_states(tiny_model(), batch, space)
    found = value_metrics(steps)
    assert found["objective/value_mean"] == steps.v.mean()
    assert found["objective/value_max"] == steps.v.abs().max()


def test_means_over_steps_and_ranks():
    one, other = Means(), Means()
    one.record({"a": 1.0, "b": torch.tensor(5.0)})
    one.record({"a": 4.0}, weight=2.0)
    other.record({"a": 0.0})
    assert Means.of([one.take(), other.take()]) == {"a": 9 / 4, "b": 5.0}
    assert Means.of([one.take()]) == {}
