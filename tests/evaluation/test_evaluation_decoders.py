"""Beam search and contrastive search against searches that run every string alone."""

from functools import cache

import numpy as np
import pytest
import torch

from sequencematch import InputError
from sequencematch.evaluation.decoders import beam_search, contrastive_search
from sequencematch.mdp import ALL, ActionSpace, Deletion
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig

VOCAB, EOS, BKSP, RESET = 11, 0, 8, 10
SPACE = ActionSpace(VOCAB, EOS, (Deletion(BKSP, 1), Deletion(RESET, ALL)))
NARROW = ActionSpace(VOCAB - 1, EOS, (Deletion(BKSP, 1),))
PROMPTS = [(1, 2, 3, 4), (5,), (6, 7), (2, 2, 2, 5, 6, 7), (3, 1)]
CONFIG = SamplingConfig(max_completion_length=5)
DECODERS = [beam_search, contrastive_search]
FAMILIES = ["gpt2", "llama", "gemma3"]


def new_engine(tiny_model, family="llama", space=SPACE, batch_size=64, **options):
    return HFRolloutEngine(tiny_model(family, **options), space, batch_size)


@cache
@torch.no_grad()
def alone(model, string, space):
    """log pi(.|string), float [V], with deletions forbidden; and the last hidden states, float [L, D]."""
    output = model(torch.tensor([string]), use_cache=False, output_hidden_states=True)
    logits = output.logits[0, -1].index_fill(0, torch.tensor([*space.by_token]), -torch.inf)
    logits[space.vocab_size :] = -torch.inf
    return logits.log_softmax(-1), output.hidden_states[-1][0]


def naive_beams(model, prompt, space, limit, beams, length_penalty):
    """The best walk of a beam search, and how many steps it took."""
    running, ended = [(0.0, ())], []
    for step in range(1, limit + 1):
        grown = [
            (score + log_prob, (*walk, action))
            for score, walk in running
            for action, log_prob in enumerate(alone(model, (*prompt, *walk), space)[0].tolist())
        ]
        best = sorted(grown, key=lambda found: -found[0])[: 2 * beams]
        over = [walk[-1] == EOS or step == limit for _, walk in best]
        ended += [(s / step**length_penalty, w) for (s, w), done in list(zip(best, over, strict=True))[:beams] if done]
        ended = sorted(ended, key=lambda found: -found[0])[:beams]
        running = [found for found, done in zip(best, over, strict=True) if not done][:beams]
        if len(ended) == beams:
            break
    return ended[0][1], step


def naive_contrast(model, prompt, space, limit, top_k, alpha):
    """The walk of a contrastive search."""
    walk = ()
    while len(walk) < limit and EOS not in walk:
        log_probs, context = alone(model, (*prompt, *walk), space)
        scores = {}
        for action in log_probs.argsort(descending=True)[:top_k].tolist():
            new = alone(model, (*prompt, *walk, action), space)[1][-1]
            alike = max(torch.cosine_similarity(new, old, dim=0).item() for old in context)
            scores[action] = (1 - alpha) * log_probs[action].exp().item() - alpha * alike
        walk = (*walk, max(scores, key=scores.get))
    return walk


def check_walk(rollout, walk, config=CONFIG):
    longest = config.max_completion_length
    assert tuple(rollout.trajectory.actions.tolist()) == (walk if EOS in walk else walk[:longest])
    assert rollout.completion == tuple(action for action in walk if action != EOS)[:longest]
    assert rollout.finish_reason == ("eos" if EOS in walk else "max_completion_length")
    assert rollout.trajectory.terminated == (EOS in walk)


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search_finds_what_a_naive_one_finds(family, tiny_model):
    engine = new_engine(tiny_model, family)
    for beams, length_penalty in ((2, 1.0), (4, 1.0), (3, 0.0)):
        found = beam_search(engine, PROMPTS, CONFIG, num_beams=beams, length_penalty=length_penalty)
        for prompt, rollout, actions in zip(PROMPTS, found.rollouts, found.actions.tolist(), strict=True):
            walk, steps = naive_beams(engine.model, prompt, SPACE, 6, beams, length_penalty)
            check_walk(rollout, walk)
            assert actions == beams * steps


@pytest.mark.parametrize("family", FAMILIES)
def test_contrastive_search_finds_what_a_naive_one_finds(family, tiny_model):
    engine = new_engine(tiny_model, family)
    for top_k, alpha in ((4, 0.6), (2, 0.9), (50, 1.0)):
        found = contrastive_search(engine, PROMPTS, CONFIG, top_k=top_k, penalty_alpha=alpha)
        for prompt, rollout, actions in zip(PROMPTS, found.rollouts, found.actions.tolist(), strict=True):
            walk = naive_contrast(engine.model, prompt, SPACE, 6, min(top_k, VOCAB - 2), alpha)
            check_walk(rollout, walk)
            assert actions == min(top_k, VOCAB) * len(walk)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("family", ["gpt2", "qwen3-mixed"])
def test_prompts_of_any_length_share_a_batch(decode, family, tiny_model):
    model = tiny_model(family)
    singles = [decode(HFRolloutEngine(model, SPACE, 1), [prompt], CONFIG) for prompt in PROMPTS]
    for batch_size in (1, 8, 64):
        together = decode(HFRolloutEngine(model, SPACE, batch_size), PROMPTS, CONFIG)
        assert together.actions.tolist() == [single.actions.item() for single in singles]
        for single, rollout in zip(singles, together.rollouts, strict=True):
            assert single.rollouts[0].trajectory == rollout.trajectory
            np.testing.assert_allclose(single.rollouts[0].log_probs, rollout.log_probs, atol=1e-5)


@pytest.mark.parametrize("decode", DECODERS)
def test_log_probabilities_are_the_policys(decode, tiny_model):
    """Of the policy that may delete, as for every other rollout."""
    engine = new_engine(tiny_model)
    for prompt, rollout in zip(PROMPTS, decode(engine, PROMPTS, CONFIG).rollouts, strict=True):
        for done, action in enumerate(rollout.trajectory.actions.tolist()):
            with torch.no_grad():
                logits = engine.model(torch.tensor([[*prompt, *rollout.completion[:done]]])).logits[0, -1]
            legal = [token for token in range(VOCAB) if SPACE.is_legal(token, done)]
            assert rollout.log_probs[done] == pytest.approx(
                (logits[action] - logits[legal].logsumexp(0)).item(), abs=1e-5
            )
        assert rollout.log_probs.dtype == np.float64
        assert rollout.trajectory.source == "policy"


@pytest.mark.parametrize(
    ("decode", "options"),
    [
        (beam_search, {"num_beams": 1}),
        (contrastive_search, {"top_k": 1}),
        (contrastive_search, {"penalty_alpha": 0.0}),
    ],
)
@pytest.mark.parametrize("limits", [{}, {"max_actions": 5}, {"max_completion_length": 1}])
def test_with_nothing_to_choose_it_is_greedy_decoding(decode, options, limits, tiny_model):
    engine = new_engine(tiny_model)
    config = SamplingConfig(**{"max_completion_length": 5, **limits})
    greedy = engine.rollout(PROMPTS, SamplingConfig(**vars(config) | {"temperature": 0.0, "allow_backspace": False}))
    for expected, found in zip(greedy, decode(engine, PROMPTS, config, **options).rollouts, strict=True):
        assert found.trajectory == expected.trajectory
        assert (found.completion, found.finish_reason) == (expected.completion, expected.finish_reason)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.parametrize("decode", DECODERS)
def test_tokens_beyond_the_action_space_are_never_chosen(decode, tiny_model):
    model = tiny_model("llama", seed=3)
    with torch.no_grad():  # the last token would be the best everywhere
        model.get_output_embeddings().weight[-1] = 10 * model.get_output_embeddings().weight.mean(0)
    found = decode(HFRolloutEngine(model, NARROW), PROMPTS, CONFIG)
    assert all(token < VOCAB - 1 for rollout in found.rollouts for token in rollout.completion)


@pytest.mark.parametrize("decode", DECODERS)
def test_the_model_is_left_as_it_was_and_its_own_generation_options_do_not_count(decode, tiny_model):
    expected = decode(new_engine(tiny_model), PROMPTS, CONFIG)
    engine = new_engine(tiny_model)
    engine.model.generation_config.repetition_penalty = 5.0
    engine.model.generation_config.min_new_tokens = 3
    engine.model.train()
    state = torch.get_rng_state()
    found = decode(engine, PROMPTS, CONFIG)
    assert [rollout.trajectory for rollout in found.rollouts] == [rollout.trajectory for rollout in expected.rollouts]
    assert engine.model.training
    assert engine.model.generation_config.repetition_penalty == 5.0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("decode", DECODERS)
def test_no_prompts(decode, tiny_model):
    found = decode(new_engine(tiny_model), [], CONFIG)
    assert (found.rollouts, found.actions.tolist()) == ([], [])


def test_a_beam_search_runs_as_many_strings_as_it_says(tiny_model):
    engine, runs = new_engine(tiny_model), []
    beam_search(engine, PROMPTS, CONFIG)  # the first time, attention is checked too
    engine.model.model.register_forward_hook(lambda module, args, output: runs.append(output.last_hidden_state.shape))
    for prompt in PROMPTS:
        found = beam_search(engine, [prompt], CONFIG, num_beams=3)
        *steps, _ = runs  # the last one is for the log-probabilities
        assert found.actions.tolist() == [sum(shape[0] for shape in steps)]
        runs.clear()


@pytest.mark.parametrize(
    ("decode", "config", "options", "message"),
    [
        (beam_search, {}, {"num_beams": 0}, "at least one beam"),
        (contrastive_search, {}, {"top_k": 0}, "at least one candidate"),
        (contrastive_search, {}, {"penalty_alpha": 1.5}, "penalty_alpha must be between 0 and 1"),
        (beam_search, {"logit_bias": {1: 2.0}}, {}, "no logit_bias"),
        (contrastive_search, {"stop_token_ids": (3,)}, {}, "no stop_token_ids"),
        (beam_search, {"stop_strings": ("a",)}, {}, "no stop_strings"),
        (beam_search, {"max_completion_length": 64}, {}, "do not fit the model's 64 positions"),
    ],
)
def test_what_cannot_be_decoded(decode, config, options, message, tiny_model):
    with pytest.raises(InputError, match=message):
        decode(new_engine(tiny_model), PROMPTS, SamplingConfig(**config), **options)


def test_bad_prompts_are_refused(tiny_model):
    for prompts, message in (([[]], "at least one token"), ([[VOCAB]], "out of range")):
        with pytest.raises(InputError, match=message):
            beam_search(new_engine(tiny_model), prompts, CONFIG)
