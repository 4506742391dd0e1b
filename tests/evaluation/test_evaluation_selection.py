"""Best of n at equal sampled actions, and how the completion is chosen."""

import numpy as np
import pytest

from sequencematch import InputError
from sequencematch.evaluation.selection import choose_likeliest, choose_majority, draw_within
from sequencematch.mdp import ALL, ActionSpace, Deletion, Trajectory, replay
from sequencematch.rollouts import HFRolloutEngine, Rollout, SamplingConfig

VOCAB, EOS, BKSP, RESET = 11, 0, 8, 10
SPACE = ActionSpace(VOCAB, EOS, (Deletion(BKSP, 1), Deletion(RESET, ALL)))
PROMPTS = [(1, 2, 3), (4,), (5, 6), (7, 7, 7)]
CONFIG = SamplingConfig(max_completion_length=6, max_actions=12, seed=3)


@pytest.fixture(scope="module")
def engine(tiny_model):
    return HFRolloutEngine(tiny_model("llama"), SPACE)


def spent(rollouts):
    return sum(len(rollout.trajectory) for rollout in rollouts)


def same(first, second):
    return first.trajectory == second.trajectory and first.finish_reason == second.finish_reason


@pytest.mark.parametrize("actions", [1, 5, 20, 60])
def test_a_budget_is_used_up_and_never_exceeded_but_by_the_first(actions, engine):
    single = engine.rollout(PROMPTS, CONFIG)
    drawn = draw_within(engine, PROMPTS, CONFIG, actions)
    for first, rollouts in zip(single, drawn, strict=True):
        assert same(rollouts[0], first)
        assert spent(rollouts) == max(actions, len(first.trajectory))
        assert all(len(rollout.trajectory) > 0 for rollout in rollouts)
    assert max(map(len, drawn)) > 1 or actions < 20


def test_every_completion_is_a_legal_walk(engine):
    for rollouts in draw_within(engine, PROMPTS, CONFIG, 50):
        for rollout in rollouts:
            assert replay(rollout.trajectory, SPACE).completion == rollout.completion
            assert len(rollout.log_probs) == len(rollout.trajectory)
            assert rollout.trajectory.terminated == (rollout.finish_reason == "eos")
        *whole, last = rollouts
        assert all(rollout.finish_reason in ("eos", "max_completion_length", "max_actions") for rollout in whole)
        assert all(len(r.trajectory) == 12 for r in whole if r.finish_reason == "max_actions")
        assert last.finish_reason in ("eos", "max_actions", "max_completion_length")


def test_a_smaller_budget_draws_the_same_completions_and_cuts_the_last(engine):
    large, small = (draw_within(engine, PROMPTS, CONFIG, actions) for actions in (60, 31))
    for many, few in zip(large, small, strict=True):
        assert all(map(same, few[:-1], many))
        cut, whole = few[-1], many[len(few) - 1]
        length = len(cut.trajectory)
        assert cut.trajectory.actions.tolist() == whole.trajectory.actions[:length].tolist()
        np.testing.assert_allclose(cut.log_probs, whole.log_probs[:length], atol=1e-5)
        if length < len(whole.trajectory):
            assert cut.finish_reason == "max_actions"
            assert not cut.trajectory.terminated


def test_seeds_decide_what_is_drawn(engine):
    def walks(seed, prompts=PROMPTS):
        config = SamplingConfig(max_completion_length=6, max_actions=12, seed=seed)
        drawn = draw_within(engine, prompts, config, 45)
        return [[tuple(rollout.trajectory.actions.tolist()) for rollout in rollouts] for rollouts in drawn]

    assert walks(3) == walks(3)
    assert walks(3) != walks(4)
    assert walks(None) != walks(None)
    # Equal prompts get completions of their own, and so does every round.
    twins = walks(3, [PROMPTS[0]] * 2)
    assert twins[0][0] != twins[1][0]
    assert set(twins[0][1:-1]).isdisjoint(twins[1][1:-1])
    assert len(set(twins[0][:-1])) == len(twins[0]) - 1 > 2


def test_the_completions_of_a_prompt_do_not_depend_on_the_others(engine):
    alone, among = draw_within(engine, PROMPTS[:1], CONFIG, 60)[0], draw_within(engine, PROMPTS, CONFIG, 60)[0]
    assert len(alone) == len(among)
    assert all(map(same, alone, among))


def test_best_of_one_is_plain_sampling(engine):
    single = engine.rollout(PROMPTS, CONFIG)
    for choose in (choose_likeliest, choose_majority):
        for first, rollouts in zip(single, draw_within(engine, PROMPTS, CONFIG, 1), strict=True):
            assert same(choose(rollouts), first)


def test_a_policy_that_can_do_nothing_is_not_asked_for_ever(engine):
    nothing = SamplingConfig(max_completion_length=4, logit_bias=dict.fromkeys(range(VOCAB), -np.inf))
    ((rollout,),) = draw_within(engine, PROMPTS[:1], nothing, 10)
    assert rollout.finish_reason == "no_legal_action"


def test_no_prompts(engine):
    assert draw_within(engine, [], CONFIG, 10) == []


@pytest.mark.parametrize(
    ("config", "actions", "message"),
    [(CONFIG, 0, "at least one action"), (SamplingConfig(temperature=0.0), 5, "temperature above 0")],
)
def test_what_cannot_be_drawn(config, actions, message, engine):
    with pytest.raises(InputError, match=message):
        draw_within(engine, PROMPTS, config, actions)


def rollout(*actions, log_prob=-1.0):
    """A rollout with so much log-probability in all."""
    terminated = actions[-1:] == (EOS,)
    trajectory = Trajectory(np.array([1]), np.array(actions, int), None, terminated, "policy", 0)
    log_probs = np.full(len(actions), log_prob / len(actions))
    return Rollout(trajectory, log_probs, replay(trajectory, SPACE).completion, "eos" if terminated else "max_actions")


def test_the_likeliest():
    cut = rollout(2, log_prob=-0.1)
    likely, unlikely = rollout(2, 3, EOS, log_prob=-2.0), rollout(3, EOS, log_prob=-2.5)
    assert choose_likeliest([cut, unlikely, likely]) is likely
    assert choose_likeliest([unlikely, likely]) is likely
    assert choose_likeliest([rollout(4, 5, log_prob=-3.0), cut]) is cut
    # The sum counts, not the mean: of nine actions with -0.5 each, or one of -1.
    assert choose_likeliest([rollout(*[2] * 8, EOS, log_prob=-4.5), short := rollout(EOS, log_prob=-1.0)]) is short


def test_of_equally_likely_ones_the_first():
    twins = [rollout(token, EOS, log_prob=-2.0) for token in (4, 3, 5)]
    assert choose_likeliest(twins) is twins[0]
    assert choose_majority(twins) is twins[0]


def test_the_majority():
    votes = [
        rollout(2, EOS, log_prob=-0.5),
        rollout(3, EOS, log_prob=-4.0),
        rollout(2, BKSP, 3, EOS, log_prob=-3.0),  # reads the same as the one before
        rollout(3, 3, log_prob=-0.1),
        rollout(3, 3, log_prob=-0.1),
        rollout(3, 3, log_prob=-0.1),  # three that were cut have no vote
    ]
    assert choose_majority(votes) is votes[2]
    # A tie goes to the likeliest.
    assert choose_majority([*votes[1:], *votes[:1] * 2]) is votes[0]
    assert choose_majority([votes[0], *votes[3:]]) is votes[0]
    # Where nothing has ended, those that were cut vote.
    assert choose_majority([rollout(2, log_prob=-0.01), *votes[3:]]) is votes[3]


@pytest.mark.parametrize("choose", [choose_likeliest, choose_majority])
def test_nothing_to_choose_from(choose):
    with pytest.raises(InputError, match="no completion to choose"):
        choose([])
