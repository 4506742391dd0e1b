import math

import numpy as np
import pytest
from scipy.stats import binomtest

from sequencematch.data import Example
from sequencematch.evaluation import MODES, Completions, Decoding, Questions, answer, score
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, replay
from sequencematch.rollouts import Rollout, SamplingConfig

EOS, BKSP, PAIR, RESET = 0, 8, 9, 10
SPACE = ActionSpace(11, EOS, (Deletion(BKSP, 1), Deletion(PAIR, 2), Deletion(RESET, ALL)))


def rollout(*actions):
    terminated = actions[-1:] == (EOS,)
    trajectory = Trajectory(np.array([1]), np.array(actions, int), None, terminated, "policy", 0)
    completion = replay(trajectory, SPACE).completion
    return Rollout(trajectory, np.zeros(len(actions)), completion, "eos" if terminated else "max_actions")


def scored(rollouts, correct, space=SPACE, seconds=0.0):
    actions = np.array([len(rollout.trajectory) for rollout in rollouts])
    return score(Completions(rollouts, actions, seconds), correct, space)


def test_a_score_by_hand():
    rollouts = [
        rollout(2, 3, EOS),  # no deletion
        rollout(2, BKSP, 3, 4, BKSP, BKSP, 5, EOS),  # runs of 1 and 2
        rollout(2, 3, 4, PAIR, BKSP),  # one run of 2 different ones, cut
        rollout(2, RESET, 2, RESET, EOS),  # two runs of 1
    ]
    found = scored(rollouts, [True, False, False, True], seconds=2.5)
    assert found.n == 4
    assert found.accuracy == 0.5
    assert found.deletion_rate == pytest.approx(7 / 21)
    assert found.mean_run == pytest.approx(7 / 5)
    assert found.actions == pytest.approx(21 / 4)
    assert found.truncated == 0.25
    assert found.seconds == 2.5


def test_without_deletions_and_without_actions():
    found = scored([rollout(2, EOS), rollout()], [True, False])
    assert (found.deletion_rate, found.mean_run, found.actions, found.truncated) == (0, 0, 1, 0.5)


def test_a_run_ends_with_its_rollout():
    found = scored([rollout(2, BKSP), rollout(2, BKSP, EOS)], [False, True])
    assert found.mean_run == 1


def test_a_model_without_deletions():
    space = ActionSpace(11, EOS)
    found = scored([rollout(2, 3, EOS)], [True], space)
    assert (found.deletion_rate, found.mean_run) == (0, 0)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (17, 30), (1, 500)])
def test_the_interval_is_wilsons(right, n):
    found = scored([rollout(EOS)] * n, [True] * right + [False] * (n - right))
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
    found = scored([rollout(2, EOS)], [True], seconds=1.0).as_dict()
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
    examples = [Example(tuple(letters(prompt)), (*letters("a"), EOS), prompt, "a") for prompt in ("cd", "c", "d", "cc")]
    judged = []

    def is_correct(prompt, expected, completion):
        judged.append((prompt, expected, completion))
        return completion == expected

    config = SamplingConfig(max_completion_length=7, seed=5)
    questions = Questions(examples, is_correct, [""] * 4)
    answers = answer(engine, tokenizer, questions, config, Decoding.of(MODES["greedy_exclude"]))
    found = answers.score
    assert answers.completions.rollouts == list(engine.answers)
    assert answers.completions.actions.tolist() == [2, 4, 1, 2]
    assert answers.texts == ["a", "a", "a", "b"]
    assert answers.correct == [True, True, False, False]
    ((prompts, used),) = engine.asked
    assert prompts == [example.prompt_ids for example in examples]
    assert (used.temperature, used.retry, used.max_completion_length, used.seed) == (0.0, "exclude", 7, 5)
    # The third is right but was cut before its end, so it does not count.
    assert judged == [("cd", "a", "a"), ("c", "a", "a"), ("cc", "a", "b")]
    assert (found.accuracy, found.truncated) == (0.5, 0.25)


@pytest.mark.parametrize("mode", MODES)
def test_modes_change_the_configuration_and_nothing_else(mode, tokenizer, letters):
    engine = Engine(rollout(EOS))
    config = SamplingConfig(max_actions=9, temperature=0.3, backspace_logit_bias=1.0)
    questions = Questions([Example((1,), (EOS,), "a", "")], lambda *_: False, [""])
    answer(engine, tokenizer, questions, config, Decoding.of(MODES[mode]))
    used = engine.asked[0][1]
    assert used.temperature == (1.0 if mode.startswith("sampled") else 0.0)
    assert used.allow_backspace == ("no_deletion" not in mode)
    assert used.retry == ("exclude" if "exclude" in mode else "resample")
    assert (used.max_actions, used.backspace_logit_bias) == (9, 1.0)
