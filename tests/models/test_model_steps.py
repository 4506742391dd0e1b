"""Soft values and steps of a tree against their definitions, each state alone through the model."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_reference import naive_steps, parameter_gradients, sample_walks, value_alone

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory
from sequencematch.models import evaluate_states, mask_illegal, steps_of, tree_logits
from sequencematch.objectives import (
    bc_loss,
    bc_loss_reference,
    get_divergence,
    sequencematch_loss,
    sequencematch_loss_reference,
)
from sequencematch.tree import collate_trajectories as collate


@pytest.mark.parametrize("length", [1, 3, ALL])
def test_illegal_deletions_have_probability_zero_at_the_boundary(length):
    space = ActionSpace(5, 0, (Deletion(3, length),))
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    kept = logits.clone()
    masked = mask_illegal(logits, torch.arange(6), space)
    needed = 1 if length == ALL else length
    assert masked[:needed, 3].tolist() == [-torch.inf] * needed
    assert torch.equal(masked[needed:], logits[needed:])
    assert torch.equal(masked[:, [0, 1, 2, 4]], logits[:, [0, 1, 2, 4]])
    assert torch.equal(logits, kept)
    assert (masked.softmax(-1)[:needed, 3] == 0).all()


@given(st.sets(st.sampled_from([1, 2, 3, ALL])), st.integers(0, 2**31))
def test_masked_values_are_logsumexp_over_legal_actions(lengths, seed):
    deletions = tuple(Deletion(1 + i, length) for i, length in enumerate(sorted(lengths, key=str)))
    space = ActionSpace(8, 0, deletions)
    logits = 3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
    completion = torch.arange(10).reshape(2, 5) % 5
    values = mask_illegal(logits, completion, space).logsumexp(-1)
    for row, column in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        expected = value_alone(logits[row, column], int(completion[row, column]), space)
        torch.testing.assert_close(values[row, column], expected)


def test_masking_keeps_gradients_finite(space):
    logits = torch.randn(4, space.vocab_size, requires_grad=True)
    mask_illegal(logits, torch.arange(4), space).logsumexp(-1).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, [8, 9, 10]] == 0).all()
    assert (logits.grad[3, [8, 9, 10]] > 0).all()


def test_soft_values_are_those_of_the_states(space):
    batch = collate(sample_walks(space), space)
    logits = torch.randn(len(batch.token), space.vocab_size, generator=torch.Generator().manual_seed(0))
    steps = steps_of(logits, batch, space)
    assert {0, 1, 2, 3} <= set(batch.completion_length[batch.state].tolist())
    for found, nodes in ((steps.v, batch.state), (steps.v_next, batch.next), (steps.terminal_v, batch.final)):
        for value, node in zip(found, nodes, strict=True):
            torch.testing.assert_close(value, value_alone(logits[node], int(batch.completion_length[node]), space))


@pytest.mark.parametrize("terminal_value", ["learned", "zero"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
@torch.no_grad()
def test_steps_equal_the_states_run_alone(tiny_model, space, family, terminal_value):
    model = tiny_model(family)
    walks = [*sample_walks(space), Trajectory([4, 5], [], terminated=False), Trajectory([6], [0])]
    steps = evaluate_states(model, collate(walks, space), space, terminal_value)
    expected = naive_steps(model, walks, space, terminal_value)
    for field in fields(steps):
        found, wanted = getattr(steps, field.name), getattr(expected, field.name)
        torch.testing.assert_close(found, wanted, atol=3e-5, rtol=1e-5, msg=lambda m, name=field.name: f"{name}: {m}")
    assert (steps.terminal_v[steps.terminated] == 0).all() == (terminal_value == "zero")
    last = (steps.t == steps.length[steps.trajectory] - 1) & steps.terminated[steps.trajectory]
    assert (steps.v_next[last] == 0).all() == (terminal_value == "zero")
    assert (steps.v_next[~last] != 0).all()


def test_zero_terminal_value_spares_truncated_walks_to_the_same_string(space):
    """Only an absorbing node is zero: here the truncated walk ends at an ordinary state of the other walk."""
    batch = collate([Trajectory([1], [2, 3, 0]), Trajectory([1], [2, 3], terminated=False)], space)
    logits = torch.randn(len(batch.token), space.vocab_size)
    values = mask_illegal(logits, batch.completion_length, space).logsumexp(-1)
    steps = steps_of(logits, batch, space, "zero")
    torch.testing.assert_close(steps.terminal_v, torch.stack([torch.zeros(()), values[batch.final[1]]]))
    torch.testing.assert_close(steps.v, values[batch.state])
    torch.testing.assert_close(steps.v_next[[0, 1, 3, 4]], values[batch.next[[0, 1, 3, 4]]])
    assert steps.v_next[2] == 0


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_steps_are_at_least_float32(space, given_dtype, kept):
    batch = collate(sample_walks(space), space)
    logits = torch.randn(len(batch.token), space.vocab_size).to(given_dtype)
    steps = steps_of(logits, batch, space)
    assert steps.q.dtype == steps.v.dtype == steps.v_next.dtype == steps.terminal_v.dtype == kept
    torch.testing.assert_close(steps.q, logits.to(kept)[batch.state, batch.action])


def sides(steps, batch):
    return steps.subset(~batch.is_policy), steps.subset(batch.is_policy)


def expert_and_policy(walks):
    return [w for w in walks if w.source == "expert"], [w for w in walks if w.source == "policy"]


def assert_same_loss(model, fast, slow):
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-5)
    one, other = parameter_gradients(model, fast), parameter_gradients(model, slow)
    scale = max(gradient.abs().max() for gradient in other)
    assert scale > 0.01
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found / scale, expected / scale, atol=2e-5, rtol=1e-4)


def test_tree_likelihood_equals_the_naive_loss(tiny_model, space):
    model = tiny_model("llama")
    walks = sample_walks(space, source="expert")
    fast, _ = bc_loss(evaluate_states(model, collate(walks, space), space))
    assert_same_loss(model, fast, bc_loss_reference(naive_steps(model, walks, space)))


@pytest.mark.parametrize("terminal_value", ["learned", "zero"])
@pytest.mark.parametrize("name", ["lecam", "chi2_mixture"])
def test_tree_loss_equals_the_naive_loss(tiny_model, space, name, terminal_value):
    model = tiny_model("llama")
    walks = sample_walks(space, seed=1)
    expert, policy = expert_and_policy(walks)
    assert expert
    assert policy
    options = {"divergence": get_divergence(name), "alpha": 0.2, "gamma": 0.9, "value_estimator": "mixed"}
    batch = collate(walks, space)
    fast, _ = sequencematch_loss(*sides(evaluate_states(model, batch, space, terminal_value), batch), **options)
    slow = sequencematch_loss_reference(
        naive_steps(model, expert, space, terminal_value), naive_steps(model, policy, space, terminal_value), **options
    )
    assert_same_loss(model, fast, slow)


@pytest.mark.parametrize("name", ["lecam", "chi2_mixture"])
def test_accumulated_halves_equal_the_whole_batch(tiny_model, space, name):
    """With one common denominator, however the trajectories fall into trees."""
    model = tiny_model("llama")
    walks = sample_walks(space, count=12)
    expert, policy = expert_and_policy(walks)
    options = {"divergence": get_divergence(name), "alpha": 0.2, "gamma": 0.9}

    def loss(part):
        batch = collate(part, space)
        steps = sides(evaluate_states(model, batch, space), batch)
        matched, _ = sequencematch_loss(*steps, **options, denominator=len(expert))
        return matched + bc_loss(steps[0], denominator=len(expert))[0]

    # Long walks in one half and short ones in the other would show a mean over steps.
    short = [
        replace(w, actions=w.actions[:2], action_weights=w.action_weights[:2], terminated=False) for w in expert[:3]
    ]
    expert = [*short, *expert[3:]]
    halves = [[*expert[:3], *policy[:3]], [*expert[3:], *policy[3:]]]
    whole = loss([*expert, *policy])
    assert_same_loss(model, sum(loss(half) for half in halves), whole)


@pytest.mark.parametrize("terminal_value", ["learned", "zero"])
def test_fused_steps_equal_those_from_logits(tiny_model, space, terminal_value):
    """The fast path against its reference: values, and gradients of every parameter."""
    model = tiny_model("gpt2")
    batch = collate(sample_walks(space), space)
    logits = tree_logits(model, batch)
    assert logits.shape == (len(batch.token), space.vocab_size)
    slow, fast = steps_of(logits, batch, space, terminal_value), evaluate_states(model, batch, space, terminal_value)
    generator = torch.Generator().manual_seed(0)
    sums = []
    for steps in (fast, slow):
        generator.manual_seed(0)
        values = (steps.q, steps.v, steps.v_next, steps.terminal_v)
        sums.append(sum((torch.randn(x.shape, generator=generator) * x).sum() for x in values))
    assert_same_loss(model, *sums)


def test_an_unknown_terminal_value(tiny_model, space):
    with pytest.raises(InputError, match="terminal_value is learned or zero"):
        evaluate_states(tiny_model(), collate(sample_walks(space), space), space, "one")
