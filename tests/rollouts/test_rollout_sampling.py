"""The distribution actions are drawn from, and the drawing."""

import numpy as np
import pytest
import torch
from rollout_models import BKSP, BKSP2, EOS, RESET, SPACE, VOCAB

from sequencematch.errors import InputError
from sequencematch.mdp import ActionSpace
from sequencematch.rollouts import SamplingConfig, draw_actions, next_action_logits

DELETIONS = [BKSP, BKSP2, RESET]
LONG = torch.tensor([5, 5, 5])


@pytest.fixture
def logits():
    return torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))


def probabilities(logits, length=LONG, space=SPACE, **knobs):
    kwargs = {name: knobs.pop(name) for name in ("deletions_taken", "barred") if name in knobs}
    return next_action_logits(logits, length, space, SamplingConfig(**knobs), **kwargs).exp()


def test_the_default_is_the_policy(logits):
    torch.testing.assert_close(probabilities(logits), logits.softmax(-1))


def test_illegal_deletions_have_probability_zero(logits):
    p = probabilities(logits, torch.tensor([0, 1, 2]))
    assert [[token for token in DELETIONS if p[row, token] > 0] for row in range(3)] == [[], [BKSP, RESET], DELETIONS]
    torch.testing.assert_close(p.sum(-1), torch.ones(3))


def test_bias_comes_before_temperature_and_both_reach_deletions(logits):
    biased = logits.clone()
    biased[:, DELETIONS] += 1.5
    p = probabilities(logits, backspace_logit_bias=1.5, temperature=0.7)
    torch.testing.assert_close(p, (biased / 0.7).softmax(-1))


def test_deletions_can_be_forbidden_or_rationed(logits):
    p = probabilities(logits, allow_backspace=False)
    assert (p[:, DELETIONS] == 0).all()
    p = probabilities(logits, max_deletions=2, deletions_taken=torch.tensor([0, 1, 2]))
    assert (p[:2, DELETIONS] > 0).all()
    assert (p[2, DELETIONS] == 0).all()
    assert (probabilities(logits, max_deletions=0)[:, DELETIONS] == 0).all()


def test_barred_actions_have_probability_zero_and_may_leave_nothing(logits):
    barred = torch.zeros(3, VOCAB, dtype=torch.bool)
    barred[0, 3] = True
    barred[1] = True
    for knobs in ({}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.0}):
        p = probabilities(logits, barred=barred, **knobs)
        assert p[0, 3] == 0
        torch.testing.assert_close(p.sum(-1), torch.tensor([1.0, 0.0, 1.0]))


def test_greedy_and_tiny_temperatures_take_the_best_legal_action(logits):
    logits[:, BKSP2] = 9.0
    length = torch.tensor([1, 2, 0])
    best = logits.clone()
    best[[0, 2], BKSP2] = -torch.inf
    best[2, DELETIONS] = -torch.inf
    for temperature in (0.0, 1e-30):
        p = probabilities(logits, length, temperature=temperature)
        assert torch.equal(p.argmax(-1), best.argmax(-1))
        assert torch.equal(p.max(-1).values, torch.ones(3))
    tied = torch.zeros(1, VOCAB)
    assert torch.equal(probabilities(tied, torch.tensor([3]), temperature=0.0).nonzero(), torch.tensor([[0, 0]]))


def test_top_k_and_top_p():
    space = ActionSpace(4, EOS)
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    length = torch.tensor([3])
    torch.testing.assert_close(probabilities(logits, length, space, top_k=2), torch.tensor([[0.625, 0.375, 0, 0]]))
    torch.testing.assert_close(probabilities(logits, length, space, top_p=0.6), torch.tensor([[0.625, 0.375, 0, 0]]))
    torch.testing.assert_close(probabilities(logits, length, space, top_p=1e-9), torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(probabilities(logits, length, space, top_k=9), logits.exp())
    # The filters come after the temperature, top-p after top-k.
    p = probabilities(logits, length, space, temperature=0.5, top_k=3, top_p=0.9)
    kept = torch.tensor([[0.5**2, 0.3**2, 0, 0]])
    torch.testing.assert_close(p, kept / kept.sum())


def test_the_input_is_left_alone(logits):
    before = logits.clone()
    probabilities(logits, allow_backspace=False, top_k=3, backspace_logit_bias=1.0)
    assert torch.equal(logits, before)


def test_draws_follow_the_probabilities_and_never_take_the_impossible():
    log_probs = torch.tensor([[-torch.inf, 0.2, 0.5, -torch.inf, 0.3, -torch.inf]])
    log_probs = log_probs.where(log_probs == -torch.inf, log_probs.log())
    edges = torch.tensor([0.0, 0.19999, 0.20001, 0.69999, 0.70001, 1 - 2**-53], dtype=torch.float64)
    assert draw_actions(log_probs, edges[None]).tolist() == [[1, 1, 2, 2, 4, 4]]
    assert draw_actions(log_probs.expand(6, -1), edges[:, None]).flatten().tolist() == [1, 1, 2, 2, 4, 4]
    uniforms = torch.as_tensor(np.random.default_rng(0).random(20_000))
    counts = torch.bincount(draw_actions(log_probs, uniforms[None])[0], minlength=6) / 20_000
    torch.testing.assert_close(counts, log_probs[0].exp(), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "knobs",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_completion_length": 0},
        {"max_completion_length": 2.5},
        {"max_actions": 0},
        {"max_deletions": -1},
        {"backspace_logit_bias": float("-inf")},
        {"retry": "again"},
        {"seed": -1},
        {"seed": True},
    ],
)
def test_impossible_values_are_refused(knobs):
    with pytest.raises(InputError, match=next(iter(knobs))):
        SamplingConfig(**knobs)


def test_the_action_limit_has_a_default():
    assert SamplingConfig(max_completion_length=10).action_limit == 56
    assert SamplingConfig(max_actions=3).action_limit == 3
