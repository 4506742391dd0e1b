import numpy as np
import pytest
import torch

from sequencematch import InputError
from sequencematch.evaluation.replacements import improved, replacements
from sequencematch.evaluation.statistics import ratio_interval
from sequencematch.mdp import Trajectory, replay, states
from sequencematch.rollouts import Rollout

EOS, BKSP, TRIPLE, RESET = 0, 8, 9, 10
A, B, C, D = 1, 2, 3, 4


@pytest.fixture
def rollout(space):
    def make(prompt, *actions):
        terminated = actions[-1:] == (EOS,)
        trajectory = Trajectory(np.array(prompt), np.array(actions, int), None, terminated, "policy", 0)
        return Rollout(trajectory, np.zeros(len(actions)), replay(trajectory, space).completion, "eos")

    return make


def drawn(rng, space, rollout, count):
    """Random walks with many deletions."""
    found = []
    for _ in range(count):
        actions, length = [], 0
        for action in rng.choice([A, B, C, BKSP, BKSP, TRIPLE, RESET], size=rng.integers(0, 20)).tolist():
            if space.is_legal(action, length):
                actions.append(action)
                length = space.next_length(action, length)
        end = [EOS] if rng.random() < 0.5 else []
        found.append(rollout(rng.integers(1, 8, size=rng.integers(1, 3)), *actions, *end))
    return found


def replacements_by_definition(rollout, space):
    strings, actions = list(states(rollout.trajectory, space)), rollout.trajectory.actions.tolist()
    for t, action in enumerate(actions):
        if action in space.by_token:
            after = strings[t + 1]
            for u in range(t + 1, len(actions)):
                if strings[u] == after and actions[u] not in space.by_token:
                    yield (after, strings[t][len(after)], actions[u])
                    break


def test_replacements_by_hand(space, rollout):
    found = replacements(
        [
            rollout([7], A, B, BKSP, C, EOS),  # B gives way to C
            rollout([7], A, B, BKSP, BKSP, A, C),  # A comes again, and then C in the place of B
            rollout([7], A, B, BKSP, BKSP, C),  # C in the place of A; B's place is never reached again
            rollout([7], A, B, C, TRIPLE, D, BKSP, EOS),  # D in the place of A, the end in the place of D
            rollout([7], A, B, RESET),  # cut
        ],
        space,
    )
    assert found == [
        ((7, A), B, C),
        ((7, A), B, C),
        ((7,), A, A),
        ((7,), A, C),
        ((7,), A, D),
        ((7,), D, EOS),
    ]
    assert found[0].replacement == C


def test_replacements_are_those_of_the_strings(space, rollout):
    rollouts = drawn(np.random.default_rng(0), space, rollout, 60)
    expected = [one for each in rollouts for one in replacements_by_definition(each, space)]
    assert len(expected) > 100
    assert replacements(rollouts, space) == expected


@torch.no_grad()
def preference(scorer, state, deleted, replacement):
    log_pi = scorer(input_ids=torch.tensor([state])).logits[0, -1].log_softmax(-1)
    return float(log_pi[replacement] > log_pi[deleted])


@pytest.mark.parametrize(("family", "batch_size"), [("llama", 16), ("llama", 1), ("gpt2", 7)])
def test_improved_is_a_loop_over_replacements(tiny_model, space, rollout, family, batch_size):
    scorer = tiny_model(family, seed=3)
    rollouts = drawn(np.random.default_rng(1), space, rollout, 40)
    found = improved(rollouts, scorer, space, batch_size)
    changed = [[one for one in replacements_by_definition(each, space) if one[1] != one[2]] for each in rollouts]
    wins = [sum(preference(scorer, *one) for one in each) for each in changed]
    assert found.share == ratio_interval(wins, [len(each) for each in changed])
    assert 0.2 < found.share.estimate < 0.8
    every = sum(len(list(replacements_by_definition(each, space))) for each in rollouts)
    deletions = sum(int(np.isin(each.trajectory.actions, [BKSP, TRIPLE, RESET]).sum()) for each in rollouts)
    assert (found.replaced, found.repeated) == (sum(map(len, changed)), every - sum(map(len, changed)))
    assert found.unreplaced == deletions - every > 0


def test_a_scorer_that_cannot_tell(tiny_model, space, rollout):
    scorer = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        scorer.lm_head.weight[:] = 0
        scorer.lm_head.weight[C] = 0
    found = improved([rollout([7], A, B, BKSP, C, EOS), rollout([7], A, BKSP, A, EOS)], scorer, space)
    assert found.share.estimate == 0.5
    assert (found.replaced, found.repeated, found.unreplaced) == (1, 1, 0)


def test_a_scorer_without_the_deletions(tiny_model, space, rollout):
    """Eight tokens: those of the texts, and none of the deletions."""
    scorer = tiny_model("llama", vocab_size=8)
    rollouts = drawn(np.random.default_rng(2), space, rollout, 10)
    found = improved(rollouts, scorer, space)
    changed = [[one for one in replacements_by_definition(each, space) if one[1] != one[2]] for each in rollouts]
    wins = [sum(preference(scorer, *one) for one in each) for each in changed]
    assert found.share == ratio_interval(wins, [len(each) for each in changed])


def test_nothing_was_replaced(tiny_model, space, rollout):
    found = improved([rollout([7], A, EOS), rollout([7], A, BKSP)], tiny_model(), space)
    assert found.share is None
    assert (found.replaced, found.repeated, found.unreplaced) == (0, 0, 1)
    assert improved([], tiny_model(), space).share is None


def test_evaluation_mode(tiny_model, space, rollout):
    rollouts = drawn(np.random.default_rng(1), space, rollout, 10)
    model = tiny_model("gpt2", embd_pdrop=0.5, resid_pdrop=0.5).train()
    assert improved(rollouts, model, space) == improved(rollouts, tiny_model("gpt2"), space)
    assert model.training


def test_a_scorer_that_cannot_read_the_rollouts(tiny_model, space, rollout):
    with pytest.raises(InputError, match="token id 7 in the prompt is out of range"):
        improved([rollout([7], A, BKSP, B, EOS)], tiny_model(vocab_size=7), space)
    with pytest.raises(InputError, match="token id 6 in the rollout is out of range"):
        improved([rollout([1], A, BKSP, 6, EOS)], tiny_model(vocab_size=6), space)
    with pytest.raises(InputError, match="do not fit"):
        improved([rollout([1] * 63, A, BKSP, A, B, EOS)], tiny_model(), space)
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight[B] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        improved([rollout([1], A, BKSP, B, EOS)], broken, space)
