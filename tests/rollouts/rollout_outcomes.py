"""Whole trajectories with their enumerated probabilities, a forward pass for each state, and whether samples follow."""

from functools import cache

import numpy as np
import pytest
import torch
from rollout_models import EOS, fresh_logits
from scipy.stats import chisquare

from sequencematch.mdp import ALL, ActionSpace, Deletion

SPACE = ActionSpace(5, EOS, (Deletion(3, 1), Deletion(4, ALL)))
BKSP, RESET = 3, 4
PROMPT = (1, 2)


def distribution(logits, completion, deletions, barred, config, process):
    """float [V]: what the next action is drawn from, action by action, by the definitions of `SamplingConfig`."""
    scores = logits(completion)
    for token, bias in config.logit_bias.items():
        scores[token] += bias
    scores[[BKSP, RESET]] += config.backspace_logit_bias
    if process is not None:
        scores = process(torch.tensor([[*PROMPT, *completion]]), scores[None])[0]
    spent = not config.allow_backspace or deletions == config.max_deletions
    for action in range(SPACE.vocab_size):
        impossible = not SPACE.is_legal(action, len(completion)) or (spent and action in SPACE.by_token)
        if impossible or action in barred.get(completion, ()):
            scores[action] = -torch.inf
    if config.temperature == 0:
        return torch.nn.functional.one_hot(scores.argmax(), SPACE.vocab_size) * (scores.max() > -torch.inf)
    p = (scores / config.temperature).softmax(-1)
    if config.top_k:
        p[p < p.sort(descending=True).values[config.top_k - 1]] = 0
        p /= p.sum()
    if config.top_p < 1:
        order = p.argsort(descending=True)
        p[order[1:][p[order].cumsum(-1)[:-1] >= config.top_p]] = 0
        p /= p.sum()
    if config.min_p:
        p[p < config.min_p * p.max()] = 0
        p /= p.sum()
    return p.nan_to_num(0.0)


def enumerate_outcomes(model, config, process=None, stop=frozenset()):
    """Every (actions, finish reason) with its probability."""
    outcomes: dict = {}

    @cache
    def at(completion):
        return fresh_logits(model, (*PROMPT, *completion))[: SPACE.vocab_size].double()

    def logits(completion):
        return at(completion).clone()

    def end(actions, reason, probability):
        outcomes[actions, reason] = outcomes.get((actions, reason), 0.0) + probability

    def visit(actions, completion, deletions, barred, probability):
        if actions and actions[-1] == EOS:
            return end(actions, "eos", probability)
        if actions and actions[-1] in stop and completion and completion[-1] == actions[-1]:
            return end(actions, "stop", probability)
        if len(actions) == config.action_limit:
            return end(actions, "max_actions", probability)
        p = distribution(logits, completion, deletions, barred, config, process)
        if p.sum() == 0:
            return end(actions, "no_legal_action", probability)
        for action in p.nonzero().flatten().tolist():
            reached, deletion = probability * p[action].item(), SPACE.by_token.get(action)
            if deletion is not None:
                landing = completion[: deletion.landing(len(completion))]
                after = barred
                if config.retry == "exclude":
                    gone = completion[len(landing)]
                    after = {**barred, landing: {*barred.get(landing, ()), gone}}
                visit((*actions, action), landing, deletions + 1, after, reached)
            elif action != EOS and len(completion) == config.max_completion_length:
                end(actions, "max_completion_length", reached)
            else:
                visit((*actions, action), (*completion, action), deletions, barred, reached)

    visit((), (), 0, {}, 1.0)
    return outcomes


def assert_follows(rollouts, outcomes):
    """No impossible outcome, and a chi-square test of all the others (those with few expected put together)."""
    assert sum(outcomes.values()) == pytest.approx(1.0, abs=1e-5)
    n = len(rollouts)
    seen = dict.fromkeys(outcomes, 0)
    for rollout in rollouts:
        seen[tuple(rollout.trajectory.actions.tolist()), rollout.finish_reason] += 1
    common = [outcome for outcome, p in outcomes.items() if n * p >= 5]
    counts = np.array([seen[outcome] for outcome in common], dtype=float)
    expected = np.array([n * outcomes[outcome] for outcome in common])
    rest = n - expected.sum()
    if rest > 1e-6 * n:
        counts, expected = np.append(counts, n - counts.sum()), np.append(expected, rest)
    assert counts.sum() == n
    if len(counts) > 1:
        assert chisquare(counts, expected * n / expected.sum()).pvalue > 1e-3
    return len(common)
