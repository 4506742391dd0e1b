import numpy as np
import pytest
import torch

from sequencematch import InputError
from sequencematch.evaluation.values import walk_values
from sequencematch.mdp import Trajectory, replay, states
from sequencematch.models import evaluate_states, mask_illegal
from sequencematch.objectives import rewards
from sequencematch.rollouts import Rollout
from sequencematch.tree import collate_trajectories

EOS, BKSP, TRIPLE, RESET = 0, 8, 9, 10
GAMMA = 0.9


@pytest.fixture
def rollouts(space):
    def make(prompt, *actions):
        terminated = actions[-1:] == (EOS,)
        trajectory = Trajectory(np.array(prompt), np.array(actions, int), None, terminated, "policy", 0)
        return Rollout(trajectory, np.zeros(len(actions)), replay(trajectory, space).completion, "eos")

    return [
        make([4, 5], 1, 2, BKSP, 3, 6, TRIPLE, 7, EOS),
        make([4, 5], 1, 2, BKSP, 2, EOS),
        make([6]),  # cut before it did anything
        make([6], 1, RESET, 2, 3),
        make([1, 2, 3], EOS),
    ]


@torch.no_grad()
def by_definition(model, space, rollout, gamma, terminal):
    """From a forward on each state's string alone."""
    trajectory = rollout.trajectory
    logits = []
    for string in states(trajectory, space):
        length = torch.tensor(len(string) - len(trajectory.prompt_ids))
        logits.append(mask_illegal(model(input_ids=torch.tensor([string])).logits[0, -1].double(), length, space))
    values = [float(row.logsumexp(-1)) for row in logits]
    if terminal == "zero" and trajectory.terminated:
        values[-1] = 0.0
    q = [float(row[action]) for row, action in zip(logits, trajectory.actions.tolist(), strict=False)]
    return np.array(q) - gamma * np.array(values[1:]), np.array(values[:-1])


@pytest.mark.parametrize("terminal", ["learned", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rewards_and_values_are_those_of_each_state_alone(tiny_model, space, rollouts, family, terminal):
    model = tiny_model(family)
    found = walk_values(model, space, rollouts, GAMMA, terminal, batch_size=2)
    assert [len(reward) for reward, _ in found] == [8, 5, 0, 4, 1]
    for rollout, pair in zip(rollouts, found, strict=True):
        expected = by_definition(model, space, rollout, GAMMA, terminal)
        np.testing.assert_allclose(np.stack(pair), np.stack(expected), atol=1e-4)


def test_rewards_are_the_objectives(tiny_model, space, rollouts):
    model = tiny_model()
    for rollout, (reward, value) in zip(rollouts, walk_values(model, space, rollouts, GAMMA), strict=True):
        with torch.no_grad():
            steps = evaluate_states(model, collate_trajectories([rollout.trajectory], space), space)
        np.testing.assert_allclose(reward, rewards(steps, GAMMA).numpy(), atol=1e-5)
        np.testing.assert_allclose(value, steps.v.numpy(), atol=1e-5)


def test_with_gamma_1_rewards_and_values_tell_the_probability(tiny_model, space, rollouts):
    """sum_t r_t = sum_t log pi(a_t|s_t) + V(s_0) - V(s_N)."""
    model = tiny_model()
    zero = walk_values(model, space, rollouts[:1], 1.0, "zero")[0]
    batch = collate_trajectories([rollouts[0].trajectory], space)
    with torch.no_grad():
        steps = evaluate_states(model, batch, space)
    assert zero[0].sum() == pytest.approx(float((steps.q - steps.v).sum()) + zero[1][0], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(tiny_model, space, rollouts, batch_size):
    model = tiny_model()
    whole, found = (walk_values(model, space, rollouts, GAMMA, batch_size=size) for size in (2, batch_size))
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_allclose(np.stack(one), np.stack(other), atol=1e-5)


def test_evaluation_mode_and_no_gradient(tiny_model, space, rollouts):
    model = tiny_model("gpt2", embd_pdrop=0.5, resid_pdrop=0.5).train()
    calm = walk_values(tiny_model("gpt2"), space, rollouts, GAMMA)
    for one, other in zip(calm, walk_values(model, space, rollouts, GAMMA), strict=True):
        np.testing.assert_allclose(np.stack(one), np.stack(other), atol=1e-5)
    assert model.training
    assert walk_values(model, space, [], GAMMA) == []


def test_what_has_no_values(tiny_model, space, rollouts):
    model = tiny_model()
    for gamma in (0, 1.5):
        with pytest.raises(InputError, match="gamma"):
            walk_values(model, space, rollouts, gamma)
    with pytest.raises(InputError, match="terminal_value"):
        walk_values(model, space, rollouts, GAMMA, "none")
    with pytest.raises(InputError, match="at least 1, not 0"):
        walk_values(model, space, rollouts, GAMMA, batch_size=0)
    long = Trajectory(np.array([1] * 60), np.array([2] * 5), None, False, "policy", 0)
    with pytest.raises(InputError, match="do not fit the model's 64 positions"):
        walk_values(model, space, [Rollout(long, np.zeros(5), (2,) * 5, "max_actions")], GAMMA)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        walk_values(model, space, rollouts, GAMMA)
