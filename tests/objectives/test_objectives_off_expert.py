"""Rewards off the expert's way: what they are at the optimum, the loss against loops, and its deletions on trees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from objectives_tabular import DELETE, PROMPT, A, B, Occupancy, TabularMDP, minimum
from objectives_tabular import EOS as EOS_ACTION

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, departures, states
from sequencematch.models import evaluate_states, layout_of
from sequencematch.models.departures import evaluate_departures, states_off_the_way
from sequencematch.objectives import (
    MAX_RATIO,
    Steps,
    get_divergence,
    least_reward,
    off_expert_loss,
    off_expert_loss_reference,
)
from sequencematch.tree import collate_trajectories

VOCAB, EOS, BKSP, BACK2, RESET = 11, 0, 8, 9, 10
SPACE = ActionSpace(VOCAB, EOS, (Deletion(BKSP, 1), Deletion(BACK2, 2), Deletion(RESET, ALL)))
EXPERT = {(4, 5): (1, 2, 3, EOS), (3,): (2, EOS)}
ROLLOUTS = [
    ((4, 5), (1, 6, 7, BKSP, BKSP, 2, 3, EOS)),
    ((4, 5), (6, 7, EOS)),  # ends off the way
    ((4, 5), (1, 6, 7)),  # cut off the way
    ((4, 5), (1, 2)),  # cut on it
    ((4, 5), (1, 6, RESET, 1, 2, 3, EOS)),
    ((3,), (1, 1, 1, BACK2, BKSP, 2, EOS)),
    ((3,), ()),
]


def trajectories():
    rollouts = []
    for prompt, actions in ROLLOUTS:
        walk = Trajectory(prompt, actions, terminated=actions[-1:] == (EOS,), source="policy", policy_version=0)
        rollouts.append(replace(walk, action_weights=departures(walk, EXPERT[prompt], SPACE)))
    return [Trajectory(prompt, actions) for prompt, actions in EXPERT.items()] + rollouts


def collated(model):
    return collate_trajectories(trajectories(), SPACE, layout_of(model))


def random_steps(seed, count=9, trajectories=3):
    generator = torch.Generator().manual_seed(seed)
    q, v, v_next = torch.randn(3, count, generator=generator, dtype=torch.float64).requires_grad_().unbind(0)
    owner = torch.arange(count) % trajectories
    return Steps(
        q=q,
        v=v,
        v_next=v_next,
        t=torch.arange(count) // trajectories,
        weight=(torch.rand(count, generator=generator) < 0.6).float(),
        trajectory=owner,
        length=torch.bincount(owner, minlength=trajectories),
        terminal_v=torch.randn(trajectories, generator=generator, dtype=torch.float64).requires_grad_(),
        terminated=torch.tensor([True, False, True][:trajectories]),
    )


def differentiated(loss, policy, deletions):
    inputs = [policy.q, policy.v_next, policy.terminal_v, deletions.q, deletions.v_next]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("name", ["lecam", "kl", "js", "hellinger"])
def test_value_and_gradient_equal_the_reference(name):
    policy, deletions, astray = random_steps(0), random_steps(1), torch.tensor([True, True, False])
    options = {
        "divergence": get_divergence(name), "alpha": 0.7, "gamma": 0.9, "counterfactual_weight": 1.5, "scale": 0.3
    }  # fmt: skip
    fast, components = off_expert_loss(policy, deletions, astray, **options)
    slow = off_expert_loss_reference(policy, deletions, astray, **options)
    torch.testing.assert_close(fast, slow)
    found, expected = (differentiated(loss, policy, deletions) for loss in (fast, slow))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(gradient.abs().sum() > 0 for gradient in found[:4])
    assert found[4].abs().sum() == 0, "the value that a deletion leads to is a target"
    total = components["off_expert"] + 1.5 * components["counterfactual"]
    torch.testing.assert_close(0.3 * total, fast.detach())
    assert components["off_expert_share"].item() == pytest.approx(policy.weight.mean().item())


def test_nothing_to_hold_is_no_loss():
    policy = replace(random_steps(0), weight=torch.zeros(9))
    none = policy.subset(torch.zeros(3, dtype=torch.bool))
    options = {"divergence": get_divergence("lecam"), "alpha": 1.0, "gamma": 0.9, "counterfactual_weight": 1.0}
    for rollouts, astray in ((policy, torch.zeros(3, dtype=torch.bool)), (none, torch.zeros(0, dtype=torch.bool))):
        loss, components = off_expert_loss(rollouts, none, astray, **options)
        assert loss.item() == 0
        assert set(map(float, components.values())) == {0.0}


@pytest.mark.parametrize(("name", "alpha"), [("chi2", 1.0), ("chi2_mixture", 1.0), ("reverse_kl", 1.0), ("lecam", 0.0)])
def test_no_least_reward(name, alpha):
    with pytest.raises(InputError, match="sets no least reward"):
        least_reward(get_divergence(name), alpha)


@pytest.mark.parametrize("length", [1, ALL])
@pytest.mark.parametrize("name", ["lecam", "kl"])
def test_the_optimum_has_these_rewards_where_the_expert_hardly_goes(name, length):
    """An expert that writes one string, and in one of a thousand cases anything. Where the optimal policy goes far more
    often than it, the exact maximum of the dual has the least reward, deletions included, and elsewhere not."""
    mdp, divergence = TabularMDP(length, depth=2), get_divergence(name)
    pairs = list(zip(mdp.state.tolist(), mdp.action.tolist(), strict=True))
    way = {(0, A), (mdp.index[(*PROMPT, A)], B), (mdp.index[(*PROMPT, A, B)], EOS_ACTION)}
    logits = torch.tensor([0.0 if pair in way else -40.0 for pair in pairs], dtype=torch.float64)
    narrow, wide = mdp.occupancy(logits), mdp.occupancy(torch.zeros_like(logits))
    expert = Occupancy(0.999 * narrow.pairs + 1e-3 * wide.pairs, 0.999 * narrow.absorbing + 1e-3 * wide.absorbing)
    _, x = minimum(lambda x: -mdp.dual(x, expert, divergence, 1.0), torch.zeros(len(pairs) + 1, dtype=torch.float64))
    reward, _, _ = mdp.rewards(x)
    ratio = mdp.occupancy(x[:-1]).pairs / expert.pairs
    # Ratios are bounded by MAX_RATIO, and rewards fall below the least one where the bound holds.
    strays = (ratio > 100) & (ratio < 0.99 * MAX_RATIO)
    deletes = mdp.action == DELETE
    assert (strays & deletes).any()
    assert (strays & ~deletes).any()
    least = least_reward(divergence, 1.0)
    torch.testing.assert_close(reward[strays], torch.full_like(reward[strays], least), rtol=0, atol=0.02)
    assert reward[[pair in way for pair in pairs]].min() > least / 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_legal_deletion_is_the_one_that_a_walk_would_take(family, tiny_model):
    """Against a forward pass of its own for each state, by the strings that the walks and deletions lead to."""
    model = tiny_model(family).double()
    steps, deletions, astray = evaluate_departures(model, collated(model), SPACE)

    def logits(string):
        return model(input_ids=torch.tensor([string]), use_cache=False).logits[0, -1]

    def value(string, prompt):
        legal = [action for action in range(VOCAB) if SPACE.is_legal(action, len(string) - len(prompt))]
        return logits(string)[legal].logsumexp(-1)

    expected, ends = [], []
    for walk in trajectories():
        prompt = tuple(walk.prompt_ids.tolist())
        way = [prompt + EXPERT[prompt][:n] for n in range(len(EXPERT[prompt]) + 1)]
        strings = list(states(walk, SPACE))
        ends.append(walk.source == "policy" and strings[-1] not in way)
        for string in strings[: len(walk)]:
            if walk.source == "expert" or string in way:
                continue
            for deletion in SPACE.deletions:
                length = len(string) - len(prompt)
                if length >= deletion.minimum_completion:
                    landing = string[: len(prompt) + deletion.landing(length)]
                    expected.append((logits(string)[deletion.token_id].item(), value(landing, prompt).item()))
    found = list(zip(deletions.q.tolist(), deletions.v_next.tolist(), strict=True))
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-6, atol=1e-6)
    assert len(found) == 30
    assert astray.tolist() == ends
    plain = evaluate_states(model, collated(model), SPACE)
    for name in vars(plain):
        torch.testing.assert_close(getattr(steps, name), getattr(plain, name))


def test_the_experts_states_are_on_the_way(tiny_model):
    model = tiny_model("llama")
    batch = collated(model)
    off = states_off_the_way(batch, SPACE)
    of_expert = ~batch.is_policy[batch.trajectory]
    assert not off[batch.next[of_expert]].any()
    assert off.sum() == 8  # 1 6, 1 6 7, 6, 6 7, 6 7 <eos>; from 3: 1, 1 1, 1 1 1
