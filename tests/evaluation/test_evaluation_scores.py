import math

import numpy as np
import pytest
from scipy.stats import binomtest

from sequencematch import InputError
from sequencematch.evaluation import MODES, evaluate_mode, score
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, replay
from sequencematch.rollouts import Rollout, SamplingConfig

EOS, BKSP, PAIR, RESET = 0, 8, 9, 10
SPACE = ActionSpace(11, EOS, (Deletion(BKSP, 1), Deletion(PAIR, 2), Deletion(RESET, ALL)))


def rollout(*actions):
    terminated = actions[-1:] == (EOS,)
    trajectory = Trajectory(np.array([1]), np.array(actions, int), None, terminated, "policy", 0)
    completion = replay(trajectory, SPACE).completion
    return Rollout(trajectory, np.zeros(len(actions)), completion, "eos" if terminated else "max_actions")


def test_a_score_by_hand():
    rollouts = [
        rollout(2, 3, EOS),  # no deletion
        rollout(2, BKSP, 3, 4, BKSP, BKSP, 5, EOS),  # runs of 1 and 2
        rollout(2, 3, 4, PAIR, BKSP),  # one run of 2 different ones, cut
        rollout(2, RESET, 2, RESET, EOS),  # two runs of 1
    ]
    found = score(rollouts, [True, False, False, True], SPACE, seconds=2.5)
    assert found.n == 4
    assert found.accuracy == 0.5
    assert found.deletion_rate == pytest.approx(7 / 21)
    assert found.mean_run == pytest.approx(7 / 5)
    assert found.actions == pytest.approx(21 / 4)
    assert found.truncated == 0.25
    assert found.seconds == 2.5


def test_without_deletions_and_without_actions():
    found = score([rollout(2, EOS), rollout()], [True, False], SPACE, 0.0)
    assert (found.deletion_rate, found.mean_run, found.actions, found.truncated) == (0, 0, 1, 0.5)


def test_a_run_ends_with_its_rollout():
    found = score([rollout(2, BKSP), rollout(2, BKSP, EOS)], [False, True], SPACE, 0.0)
    assert found.mean_run == 1


def test_a_model_without_deletions():
    space = ActionSpace(11, EOS)
    found = score([rollout(2, 3, EOS)], [True], space, 0.0)
    assert (found.deletion_rate, found.mean_run) == (0, 0)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (17, 30), (1, 500)])
def test_the_interval_is_wilsons(right, n):
    found = score([rollout(EOS)] * n, [True] * right + [False] * (n - right), SPACE, 0.0)
    z = 1.959963984540054
    p = right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    interval = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert 0 <= found.low <= found.accuracy + 1e-12
    assert found.accuracy - 1e-12 <= found.high <= 1


def test_a_score_as_a_dictionary():
    found = score([rollout(2, EOS)], [True], SPACE, 1.0).as_dict()
    assert set(found) == {
        "accuracy", "low", "high", "n", "deletion_rate", "mean_run", "actions", "truncated", "seconds"
    }  # fmt: skip
    import json

    assert json.loads(json.dumps(found)) == found


class Engine:
    """Answers every prompt as it is told, and keeps how it was asked."""

    space = SPACE

    def __init__(self, *answers):
        self.answers = answers
        self.asked = []

    def rollout(self, prompts, config):
        self.asked.append((prompts, config))
        return list(self.answers)


@pytest.fixture
def letters(tokenizer):
    """`letters("ab")`: token ids of the tokenizer; its letters begin at 4."""
    return lambda text: tokenizer(text)["input_ids"]


def test_evaluating_a_mode(tokenizer, letters):
    a, b = letters("ab")
    engine = Engine(rollout(a, EOS), rollout(b, BKSP, a, EOS), rollout(a), rollout(b, EOS))
    rows = [{"prompt": prompt, "completion": "a"} for prompt in ("cd", "c", "d", "cc")]
    judged = []

    def is_correct(prompt, expected, completion):
        judged.append((prompt, expected, completion))
        return completion == expected

    config = SamplingConfig(max_completion_length=7, seed=5)
    found, rollouts = evaluate_mode(engine, tokenizer, rows, is_correct, config, "greedy_exclude")
    assert rollouts == list(engine.answers)
    ((prompts, used),) = engine.asked
    assert prompts == [letters(row["prompt"]) for row in rows]
    assert (used.temperature, used.retry, used.max_completion_length, used.seed) == (0.0, "exclude", 7, 5)
    # The third is right but was cut before its end, so it does not count.
    assert judged == [("cd", "a", "a"), ("c", "a", "a"), ("cc", "a", "b")]
    assert (found.accuracy, found.truncated) == (0.5, 0.25)


@pytest.mark.parametrize("mode", MODES)
def test_modes_change_the_configuration_and_nothing_else(mode, tokenizer, letters):
    engine = Engine(rollout(EOS))
    config = SamplingConfig(max_actions=9, temperature=0.3, backspace_logit_bias=1.0)
    evaluate_mode(engine, tokenizer, [{"prompt": "a", "completion": "b"}], lambda *_: False, config, mode)
    used = engine.asked[0][1]
    assert used.temperature == (1.0 if mode.startswith("sampled") else 0.0)
    assert used.allow_backspace == ("no_deletion" not in mode)
    assert used.retry == ("exclude" if "exclude" in mode else "resample")
    assert (used.max_actions, used.backspace_logit_bias) == (9, 1.0)


@pytest.mark.parametrize(
    ("rows", "mode", "message"),
    [
        ([{"prompt": "a", "completion": "b"}], "wild", "no mode 'wild'"),
        ([], "greedy", "nothing to evaluate"),
        ([{"text": "a"}], "greedy", "columns 'prompt' and 'completion'"),
    ],
)
def test_what_cannot_be_evaluated(rows, mode, message, tokenizer):
    with pytest.raises(InputError, match=message):
        evaluate_mode(Engine(), tokenizer, rows, lambda *_: True, SamplingConfig(), mode)
