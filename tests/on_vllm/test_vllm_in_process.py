"""Our loop around vLLM in this process: trajectories, log-probabilities, weights, seeds."""

import numpy as np
import pytest
import torch
from rollout_models import reference_log_probs
from rollout_outcomes import PROMPT, SPACE, assert_follows, enumerate_outcomes
from vllm_models import ON_CPU, saved_model

from sequencematch import InputError
from sequencematch.models import evaluate_states, layout_of
from sequencematch.rollouts import SamplingConfig
from sequencematch.rollouts.vllm import ColocatedVLLM, VLLMRolloutEngine
from sequencematch.tree import collate_trajectories

OPTIONS = {
    "policy": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3, "max_actions": 5},
    "top_p": {"top_p": 0.8, "temperature": 2.0},
    "min_p": {"min_p": 0.2, "temperature": 2.0},
    "biases": {"backspace_logit_bias": 1.0, "logit_bias": {0: -1.0, 2: 0.5}},
    "forbidden": {"allow_backspace": False, "logit_bias": {1: float("-inf")}, "max_completion_length": 3},
    "rationed": {"max_deletions": 1, "backspace_logit_bias": 2.0, "max_actions": 5},
    "exclude": {"retry": "exclude", "backspace_logit_bias": 1.5, "max_actions": 6, "max_completion_length": 1},
    "exclude, filtered": {"retry": "exclude", "backspace_logit_bias": 1.5, "top_k": 2, "max_actions": 6},
    "stop token": {"stop_token_ids": (2,)},
}
DELETING = SamplingConfig(max_completion_length=6, max_actions=30, backspace_logit_bias=1.0, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return saved_model(folder), folder


@pytest.fixture(scope="module")
def engine(model):
    return VLLMRolloutEngine(ColocatedVLLM(str(model[1]), **ON_CPU), SPACE)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_trajectories_have_their_enumerated_probabilities(options, engine, model):
    config = SamplingConfig(**{"max_completion_length": 2, "max_actions": 4, "seed": 5, **options})
    outcomes = enumerate_outcomes(model[0], config, None, frozenset(config.stop_token_ids))
    assert assert_follows(engine.rollout([PROMPT] * 3_000, config), outcomes) >= 5


@pytest.mark.parametrize("retry", ["resample", "exclude"])
def test_greedy_decoding_takes_the_one_path_there_is(retry, engine, model):
    config = SamplingConfig(temperature=0.0, retry=retry, max_actions=20, max_completion_length=3)
    assert_follows(engine.rollout([PROMPT], config), enumerate_outcomes(model[0], config))


def test_log_probabilities_are_those_of_the_training_forward(engine, model):
    rollouts = engine.rollout([PROMPT, (2, 1, 1)] * 50, DELETING)
    for rollout in rollouts[:20]:
        expected = reference_log_probs(model[0], rollout.trajectory, SPACE)
        np.testing.assert_allclose(rollout.log_probs, expected, atol=1e-5)
    batch = collate_trajectories([rollout.trajectory for rollout in rollouts], SPACE, layout_of(_prepared(model[0])))
    with torch.no_grad():
        steps = evaluate_states(model[0], batch, SPACE)
    sampled = torch.cat([torch.tensor(rollout.log_probs) for rollout in rollouts])
    torch.testing.assert_close((steps.q - steps.v).double(), sampled, rtol=0, atol=1e-5)
    assert any(action in SPACE.by_token for rollout in rollouts for action in rollout.trajectory.actions.tolist())


def test_seeds_give_the_same_alone_and_with_others(engine):
    many = engine.rollout([PROMPT] * 30, DELETING)
    assert [r.trajectory for r in engine.rollout([PROMPT] * 30, DELETING)] == [r.trajectory for r in many]
    assert engine.rollout([PROMPT], DELETING)[0].trajectory == many[0].trajectory
    assert len({tuple(rollout.trajectory.actions.tolist()) for rollout in many}) > 5


def test_a_weight_update_is_seen_and_labelled(engine, model, tmp_path):
    other = saved_model(tmp_path, seed=1)
    before = engine.rollout([PROMPT] * 20, DELETING)
    try:
        engine.load(str(tmp_path), 4)
        for rollout in engine.rollout([PROMPT] * 20, DELETING, policy_version=4):
            expected = reference_log_probs(other, rollout.trajectory, SPACE)
            np.testing.assert_allclose(rollout.log_probs, expected, atol=1e-5)
        with pytest.raises(InputError, match="has the weights of optimizer step 4"):
            engine.rollout([PROMPT], DELETING, policy_version=5)
        engine.backend.engine.set_weight_version("7")
        with pytest.raises(InputError, match="answered with the weights of 7, not of step 4"):
            engine.rollout([PROMPT], DELETING)
    finally:
        engine.load(str(model[1]), 0)
    again = engine.rollout([PROMPT] * 20, DELETING)
    assert [r.trajectory for r in again] == [r.trajectory for r in before]


def test_what_does_not_fit(engine):
    with pytest.raises(InputError, match="do not fit vLLM's max_model_len of 64"):
        engine.rollout([PROMPT], SamplingConfig(max_completion_length=62))
    config = SamplingConfig(max_completion_length=61, allow_backspace=False, logit_bias={0: float("-inf")})
    (rollout,) = engine.rollout([PROMPT], config)
    assert (rollout.finish_reason, len(rollout.completion)) == ("max_completion_length", 61)


def test_no_model(tmp_path):
    with pytest.raises(InputError, match="vLLM cannot load"):
        ColocatedVLLM(str(tmp_path / "nothing"), **ON_CPU)


def _prepared(model):
    from sequencematch.models import prepare_model

    prepare_model(model)
    return model
