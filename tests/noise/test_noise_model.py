"""Model noise against the policy's own probabilities, taken from one forward pass for each string."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from sequencematch.data import Example
from sequencematch.noise import ModelNoise

PROMPT, EXPERT = (4, 5), (1, 2, 3, 0)
EXAMPLE = Example(PROMPT, EXPERT, "", "")
MANY = [EXAMPLE] * 1500
NEVER = {0, 8, 9, 10}


@torch.no_grad()
def probabilities(model, string, never):
    """The policy's probabilities after this string, without those in `never`."""
    logits = model(input_ids=torch.tensor([string]), use_cache=False).logits[0, -1].double()
    logits[list(never)] = -torch.inf
    return logits.softmax(-1).numpy()


def assert_drawn_from(tokens, expected):
    """Chi-square at p = 0.001, tokens with fewer than 5 expected counts taken together."""
    counts = np.bincount(tokens, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    wanted = expected * len(tokens)
    rare = (wanted < 5) & (wanted > 0)
    common = wanted >= 5
    observed, wanted = [*counts[common], counts[rare].sum()], [*wanted[common], wanted[rare].sum()]
    if wanted[-1] < 5:  # the rest is too small for a cell of its own
        largest = int(np.argmax(wanted[:-1]))
        observed[largest] += observed.pop()
        wanted[largest] += wanted.pop()
    assert len(observed) > 1
    assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_first_tokens_follow_the_policy(tiny_model, space, family):
    model = tiny_model(family)
    found = ModelNoise(model, space, 1.0).mistakes(MANY, np.random.default_rng(0))
    for position, right in enumerate(EXPERT):
        tokens = [mistakes[position].tokens[0] for mistakes in found]
        assert all(mistakes[position].position == position for mistakes in found)
        expected = probabilities(model, PROMPT + EXPERT[:position], NEVER | {right})
        assert_drawn_from(tokens, expected)


def test_later_tokens_follow_the_policy_after_the_wrong_ones(tiny_model, space):
    model = tiny_model("llama", seed=1)
    found = ModelNoise(model, space, 1.0, max_run=3).mistakes(MANY, np.random.default_rng(0))
    runs = [mistake for mistakes in found for mistake in mistakes]
    lengths = Counter(len(run.tokens) for run in runs)
    assert sorted(lengths) == [1, 2, 3]
    assert chisquare([lengths[n] for n in (1, 2, 3)]).pvalue > 1e-3
    tested = 0
    for place in (1, 2):
        strings = Counter((r.position, r.tokens[:place]) for r in runs if len(r.tokens) > place)
        for (position, wrong), count in strings.items():
            if count < 150:
                continue
            tokens = [
                r.tokens[place]
                for r in runs
                if (r.position, r.tokens[:place]) == (position, wrong) and len(r.tokens) > place
            ]
            assert_drawn_from(tokens, probabilities(model, PROMPT + EXPERT[:position] + wrong, NEVER))
            tested += 1
    assert tested >= 8


def test_rate(tiny_model, space):
    found = ModelNoise(tiny_model(), space, 0.2).mistakes(MANY, np.random.default_rng(0))
    for position in range(len(EXPERT)):
        made = sum(mistake.position == position for mistakes in found for mistake in mistakes)
        assert binomtest(made, len(MANY), 0.2).pvalue > 1e-3
    assert ModelNoise(tiny_model(), space, 0.0).mistakes(MANY, np.random.default_rng(0)) == [[]] * len(MANY)
    assert ModelNoise(tiny_model(), space, 1.0).mistakes([], np.random.default_rng(0)) == []


def test_examples_of_different_prompts_keep_their_own_mistakes(tiny_model, space):
    """Prompts are grouped into trees and packed; each run must come from its own state all the same."""
    model = tiny_model("llama", seed=2)
    prompts = [(1,), (6, 7), (2, 3, 4)]
    examples = [Example(prompts[i % 3], EXPERT, "", "") for i in range(1500)]
    found = ModelNoise(model, space, 1.0).mistakes(examples, np.random.default_rng(0))
    for i, prompt in enumerate(prompts):
        for position, right in enumerate(EXPERT):
            tokens = [mistakes[position].tokens[0] for mistakes in found[i::3]]
            assert_drawn_from(tokens, probabilities(model, prompt + EXPERT[:position], NEVER | {right}))


def test_the_expert_is_never_drawn_even_if_the_policy_is_sure(tiny_model, space):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[2] *= 100  # very sure of token 2, for or against
    found = ModelNoise(model, space, 1.0, max_run=2).mistakes(MANY[:200], np.random.default_rng(0))
    for mistakes in found:
        for mistake in mistakes:
            assert mistake.tokens[0] != EXPERT[mistake.position]
            assert not NEVER & set(mistake.tokens)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_modes_are_as_they_were(tiny_model, space, training):
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    quiet = ModelNoise(model, space, 1.0, 2).mistakes(MANY[:50], np.random.default_rng(0))
    model.train(training)
    model.transformer.drop.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = ModelNoise(model, space, 1.0, 2).mistakes(MANY[:50], np.random.default_rng(0))
    assert [module.training for module in model.modules()] == modes
    assert found == quiet
    assert torch.equal(torch.get_rng_state(), state)
