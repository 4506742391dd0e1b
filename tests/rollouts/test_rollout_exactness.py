"""Whole trajectories against their enumerated probabilities, one forward pass per state, under every option."""

import numpy as np
import pytest
from rollout_models import EOS, legal_log_probs, tiny_model
from rollout_outcomes import BKSP, PROMPT, RESET, SPACE, assert_follows, enumerate_outcomes
from scipy.stats import chisquare

from sequencematch.rollouts import HFRolloutEngine, SamplingConfig

N = 8_000


class Avoid:
    """A logits processor: what stands at the end of the string becomes unlikely."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, input_ids[0, -1]] -= 1.0
        scores[:, EOS] += 0.3 * input_ids.shape[-1]
        return scores


OPTIONS = {
    "policy": {"sharpness": 1.5},
    "temperature": {"temperature": 0.6},
    "flat": {"temperature": 2.5, "max_actions": 5},
    "top_k": {"top_k": 3, "max_actions": 5},
    "top_p": {"top_p": 0.8, "temperature": 2.0},
    "min_p": {"min_p": 0.2, "temperature": 2.0},
    "biases": {"backspace_logit_bias": 1.0, "logit_bias": {EOS: -1.0, 2: 0.5}},
    "forbidden": {"allow_backspace": False, "logit_bias": {1: float("-inf")}, "max_completion_length": 3},
    "rationed": {"max_deletions": 1, "backspace_logit_bias": 2.0, "max_actions": 5},
    "rationed, filtered": {"max_deletions": 1, "backspace_logit_bias": 2.0, "top_k": 3, "max_actions": 5},
    "exclude": {"retry": "exclude", "backspace_logit_bias": 1.5, "max_actions": 6, "max_completion_length": 1},
    "exclude, deeper": {"retry": "exclude", "backspace_logit_bias": 1.0, "max_actions": 5, "temperature": 1.5},
    "exclude, filtered": {"retry": "exclude", "backspace_logit_bias": 1.5, "top_k": 2, "max_actions": 6},
    "many returns": {
        "backspace_logit_bias": 5.0,
        "max_completion_length": 1,
        "max_actions": 11,
        "logit_bias": {EOS: -1},
    },
    "processor": {"process": Avoid()},
    "stop token": {"stop_token_ids": (2,)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_trajectories_have_their_enumerated_probabilities(options):
    options = {"max_completion_length": 2, "max_actions": 4, "seed": 5, **options}
    model = tiny_model("mistral", sharpness=options.pop("sharpness", 1.0))
    process = options.pop("process", None)
    config = SamplingConfig(**options)
    outcomes = enumerate_outcomes(model, config, process, frozenset(config.stop_token_ids))
    n = 4_000 if process else N
    rollouts = HFRolloutEngine(model, SPACE, batch_size=2_000).rollout(
        [PROMPT] * n, config, logits_processor=[process] if process else []
    )
    assert assert_follows(rollouts, outcomes) >= 5


@pytest.mark.parametrize("retry", ["resample", "exclude"])
@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_greedy_decoding_takes_the_one_path_there_is(retry, bias):
    model = tiny_model("qwen3")
    config = SamplingConfig(
        temperature=0.0, retry=retry, backspace_logit_bias=bias, max_actions=40, max_completion_length=3
    )
    outcomes = enumerate_outcomes(model, config)
    assert len(outcomes) == 1
    assert_follows(HFRolloutEngine(model, SPACE).rollout([PROMPT], config), outcomes)


def test_the_first_action_is_the_policys():
    model = tiny_model("gpt2", sharpness=2.0)
    rollouts = HFRolloutEngine(model, SPACE, batch_size=4_000).rollout(
        [PROMPT] * N, SamplingConfig(max_completion_length=3, max_actions=1)
    )
    counts = np.bincount([rollout.trajectory.actions[0] for rollout in rollouts], minlength=5)
    expected = legal_log_probs(model, PROMPT, 0, SPACE).exp().double().numpy() * N
    assert counts[[BKSP, RESET]].sum() == 0
    assert chisquare(counts[:3], expected[:3] * N / expected[:3].sum()).pvalue > 1e-3
