"""The loop around vLLM, against enumerated probabilities: vLLM's rules, written out for a tiny model, in its place.

`tests/on_vllm` has the same with vLLM itself, in an environment of its own (`make test-vllm`).
"""

import numpy as np
import pytest
import torch
from rollout_models import EOS, favour, reference_log_probs, tiny_model
from rollout_outcomes import BKSP, PROMPT, RESET, SPACE, assert_follows, enumerate_outcomes
from test_rollout_exactness import OPTIONS
from vllm_rules import Rules

from sequencematch import InputError
from sequencematch.mdp import ActionSpace
from sequencematch.rollouts import Delete, End, SamplingConfig
from sequencematch.rollouts.vllm import VLLMRolloutEngine


def sample(model, config, prompts, **options):
    backend = Rules(model, **options)
    return VLLMRolloutEngine(backend, SPACE).rollout(prompts, config, policy_version=7), backend


@pytest.mark.parametrize(
    "name", ["policy", "top_p", "biases", "forbidden", "rationed", "exclude", "exclude, filtered", "stop token"]
)
def test_trajectories_have_their_enumerated_probabilities(name):
    options = {"max_completion_length": 2, "max_actions": 4, "seed": 5, **OPTIONS[name]}
    model = tiny_model("mistral", sharpness=options.pop("sharpness", 1.0))
    config = SamplingConfig(**options)
    outcomes = enumerate_outcomes(model, config, None, frozenset(config.stop_token_ids))
    rollouts, _ = sample(model, config, [PROMPT] * 2_000)
    assert assert_follows(rollouts, outcomes) >= 5


@pytest.mark.parametrize("retry", ["resample", "exclude"])
@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_greedy_decoding_takes_the_one_path_there_is(retry, bias):
    model = tiny_model("qwen3")
    config = SamplingConfig(
        temperature=0.0, retry=retry, backspace_logit_bias=bias, max_actions=40, max_completion_length=3
    )
    outcomes = enumerate_outcomes(model, config)
    assert_follows(sample(model, config, [PROMPT])[0], outcomes)


def test_log_probabilities_are_over_legal_actions():
    model = tiny_model()
    rollouts, _ = sample(model, SamplingConfig(max_completion_length=4, backspace_logit_bias=1.0), [PROMPT] * 50)
    assert any(RESET in rollout.trajectory.actions for rollout in rollouts)
    for rollout in rollouts:
        expected = reference_log_probs(model, rollout.trajectory, SPACE)
        np.testing.assert_allclose(rollout.log_probs, expected, atol=1e-5)
        assert rollout.trajectory.policy_version == 7


def test_an_illegal_deletion_is_refused_however_likely_it_is():
    model = favour(tiny_model(), BKSP, 20.0)
    config = SamplingConfig(max_completion_length=2, max_actions=6, logit_bias={EOS: -float("inf")})
    rollouts, _ = sample(model, config, [PROMPT] * 20)
    for rollout in rollouts:
        assert rollout.trajectory.actions[0] not in SPACE.by_token
        assert BKSP in rollout.trajectory.actions


def test_how_likely_deletions_are_is_asked_only_where_one_is_illegal():
    config = SamplingConfig(max_completion_length=4, backspace_logit_bias=1.0)
    _, backend = sample(tiny_model(), config, [PROMPT] * 40)
    assert {request.tells_deletions for request in backend.seen if request.token_ids == PROMPT} == {True}
    assert {request.tells_deletions for request in backend.seen if request.token_ids != PROMPT} == {False}


def test_every_request_has_noise_of_its_own_and_a_seed_gives_it_again():
    model, config = tiny_model(), SamplingConfig(max_completion_length=4, backspace_logit_bias=1.0, seed=3)
    first, backend = sample(model, config, [PROMPT] * 40)
    again, _ = sample(model, config, [PROMPT] * 40, concurrency=3)
    assert [rollout.trajectory for rollout in first] == [rollout.trajectory for rollout in again]
    assert len(set(backend.seeds)) == len(backend.seeds) > 40
    alone, _ = sample(model, config, [PROMPT] * 5)
    assert [rollout.trajectory for rollout in alone] == [rollout.trajectory for rollout in first[:5]]


def test_concurrency_is_bounded():
    _, backend = sample(tiny_model(), SamplingConfig(max_completion_length=3), [PROMPT] * 30, concurrency=4)
    assert backend.most == 4


def test_nothing_is_left_to_do():
    everything = dict.fromkeys(range(SPACE.vocab_size), -float("inf"))
    rollouts, backend = sample(tiny_model(), SamplingConfig(logit_bias=everything), [PROMPT] * 5, concurrency=2)
    assert {rollout.finish_reason for rollout in rollouts} == {"no_legal_action"}
    assert backend.seeds == []


def test_no_prompts():
    assert sample(tiny_model(), SamplingConfig(), [])[0] == []


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(InputError, match="stop_strings need the engine's tokenizer"):
        sample(tiny_model(), SamplingConfig(stop_strings=("ab",)), [PROMPT])


def test_what_does_not_fit():
    config = SamplingConfig(max_completion_length=6)
    assert sample(tiny_model(), config, [PROMPT], max_length=9)[0]
    with pytest.raises(InputError, match="do not fit vLLM's max_model_len of 8"):
        sample(tiny_model(), config, [PROMPT], max_length=8)


def test_interrupted_it_returns_what_is_known():
    class Interrupted(Rules):
        def poll(self):
            if len(self.seeds) > 8:
                raise KeyboardInterrupt
            return super().poll()

    backend = Interrupted(tiny_model(), concurrency=4)
    config = SamplingConfig(max_completion_length=3)
    rollouts = VLLMRolloutEngine(backend, SPACE).rollout([PROMPT] * 20, config)
    assert len(rollouts) == 20
    assert "interrupted" in {rollout.finish_reason for rollout in rollouts}
    assert not backend.requests


def test_a_model_without_deletions():
    plain = ActionSpace(5, 0)
    rollouts = VLLMRolloutEngine(Rules(tiny_model()), plain).rollout(
        [PROMPT] * 5, SamplingConfig(max_completion_length=3)
    )
    assert all(np.isfinite(rollout.log_probs).all() for rollout in rollouts)


def test_torch_state_is_left_alone():
    before = torch.get_rng_state()
    sample(tiny_model(), SamplingConfig(max_completion_length=3), [PROMPT] * 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_stream_tells_what_the_rollouts_are():
    model, config = tiny_model(), SamplingConfig(max_completion_length=4, backspace_logit_bias=1.0, seed=3)
    expected, _ = sample(model, config, [PROMPT] * 20)
    texts = [[] for _ in expected]
    ends = {}
    for event in VLLMRolloutEngine(Rules(model), SPACE).stream([PROMPT] * 20, config, policy_version=7):
        if isinstance(event, End):
            ends[event.index] = event.rollout
        elif isinstance(event, Delete):
            assert event.index not in ends
            del texts[event.index][len(texts[event.index]) - event.count :]
        else:
            texts[event.index].append(event.token_id)
    for index, rollout in enumerate(expected):
        assert ends[index].trajectory == rollout.trajectory
        assert tuple(texts[index]) == rollout.completion
