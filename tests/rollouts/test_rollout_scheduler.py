"""Slots, refill, shared prompts, seeds, plugged-in processors and criteria, and interrupts."""

import numpy as np
import pytest
import torch
from rollout_models import BKSP, CONFIGS, EOS, SPACE, VOCAB, favour, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, StoppingCriteria

from sequencematch.errors import InputError
from sequencematch.mdp import states
from sequencematch.models import evaluate_states, layout_of, prepare_model
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig, uninterrupted
from sequencematch.rollouts.decoder import Decoder
from sequencematch.tree import collate_trajectories

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 1, 2, 3, 4, 5], [2, 2]]


@pytest.fixture
def calls(monkeypatch):
    """What the decoders are asked for."""
    found = {"step": [], "prefill": [], "again": []}
    for name, size in (("step", len), ("_prefill", lambda prompts: sum(len(p) - 1 for p in prompts)), ("again", len)):
        method = getattr(Decoder, name)

        def spy(self, first, second, name=name, method=method, size=size):
            if self.cache.capacity != 8:  # the proof's own
                found[name.strip("_")].append(size(first))
            return method(self, first, second)

        monkeypatch.setattr(Decoder, name, spy)
    return found


def appended(rollout):
    return sum(action not in SPACE.by_token for action in rollout.trajectory.actions.tolist())


@pytest.mark.parametrize("retry", ["resample", "exclude"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_deletion_costs_no_forward_pass(calls, retry, temperature):
    """A row alone: a forward for the prompt's last token, and one for each appended token that anything follows."""
    config = SamplingConfig(
        max_completion_length=9,
        max_actions=60,
        backspace_logit_bias=2.0,
        logit_bias={EOS: -3.0},
        retry=retry,
        temperature=temperature,
    )
    engine = HFRolloutEngine(tiny_model(), SPACE, batch_size=1)
    deletions = 0
    for seed, prompt in enumerate(PROMPTS * 3):
        calls["step"].clear()
        (rollout,) = engine.rollout([prompt], config, seeds=[seed])
        deletions += len(rollout.trajectory) - appended(rollout)
        # The walk's last state is run if something was drawn there: an end, or what a limit then forbade.
        fed = appended(rollout) - (rollout.finish_reason == "eos") + 1
        if rollout.finish_reason == "max_actions" and rollout.trajectory.actions[-1] not in SPACE.by_token:
            fed -= 1
        assert len(calls["step"]) == fed
    assert deletions > 10


def test_finished_rows_make_room_at_once(calls):
    """Steps are as full as rows of random length allow: 4 slots are hardly ever idle before the queue is empty."""
    config = SamplingConfig(max_completion_length=30, logit_bias={EOS: 0.5})
    rollouts = HFRolloutEngine(tiny_model(), SPACE, batch_size=4).rollout(PROMPTS * 25, config)
    lengths = [appended(rollout) for rollout in rollouts]
    assert max(lengths) > 3 * np.mean(lengths)
    # Batch after batch, every batch would wait for its longest row.
    batches = sum(max(lengths[start : start + 4]) for start in range(0, 100, 4))
    assert len(calls["step"]) < 0.75 * batches
    assert sum(lengths) > 0.85 * sum(calls["step"])


def test_equal_prompts_are_filled_once_and_others_without_padding(calls):
    config = SamplingConfig(max_completion_length=6)
    engine = HFRolloutEngine(tiny_model(), SPACE, batch_size=64)
    engine.rollout([prompt for prompt in PROMPTS for _ in range(8)], config)
    assert sum(calls["prefill"]) == sum(len(prompt) - 1 for prompt in PROMPTS)
    # More generations than slots: whoever comes later finds the prompt in a slot.
    calls["prefill"].clear()
    many = HFRolloutEngine(tiny_model(), SPACE, batch_size=4).rollout([PROMPTS[2]] * 40, config)
    assert calls["prefill"] == [7]
    prepared = engine.rollout([PROMPTS[2]] * 40, config)
    assert [one.trajectory for one in many] == [one.trajectory for one in prepared]


@pytest.mark.parametrize("name", CONFIGS)
def test_with_seeds_of_their_own_rollouts_do_not_depend_on_each_other(name):
    config = SamplingConfig(max_completion_length=12, backspace_logit_bias=1.0, top_p=0.95, temperature=1.5)
    model = tiny_model(name)
    seeds = list(range(100, 100 + 3 * len(PROMPTS)))
    together = HFRolloutEngine(model, SPACE, batch_size=5).rollout(PROMPTS * 3, config, seeds=seeds)
    assert len({rollout.trajectory for rollout in together}) > len(PROMPTS)
    for prompt, seed, rollout in zip(PROMPTS * 3, seeds, together, strict=True):
        (alone,) = HFRolloutEngine(model, SPACE).rollout([prompt], config, seeds=[seed])
        assert alone.trajectory == rollout.trajectory
        np.testing.assert_allclose(alone.log_probs, rollout.log_probs, atol=1e-5)
    with pytest.raises(InputError, match="2 prompts came with 1 seeds"):
        HFRolloutEngine(model, SPACE).rollout(PROMPTS[:2], config, seeds=[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_those_of_the_training_forward(name):
    """Q - V on the state tree, to 1e-4."""
    model = tiny_model(name)
    config = SamplingConfig(max_completion_length=12, backspace_logit_bias=1.0)
    rollouts = HFRolloutEngine(model, SPACE, batch_size=5).rollout(PROMPTS * 4, config)
    space = SPACE
    prepare_model(model)
    batch = collate_trajectories([rollout.trajectory for rollout in rollouts], space, layout_of(model))
    with torch.no_grad():
        steps = evaluate_states(model, batch, space)
    found = (steps.q - steps.v).numpy()
    expected = np.concatenate([rollout.log_probs for rollout in rollouts])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # And the engine samples a prepared model as well as a stock one.
    again = HFRolloutEngine(model, SPACE, batch_size=5).rollout(PROMPTS * 4, config)
    assert [one.trajectory for one in again] == [one.trajectory for one in rollouts]


class Remembers:
    """A processor with state: every state on the way, which must be those of the surviving string."""

    def __init__(self):
        self.strings = []

    def __call__(self, input_ids, scores):
        string = input_ids[0].tolist()
        assert all(len(one) < len(string) and one == string[: len(one)] for one in self.strings)
        self.strings.append(string)
        scores = scores.clone()
        scores[:, 5] += len(self.strings)
        return scores


class ByLength:
    """The same distribution without state."""

    def __init__(self, prompt):
        self.prompt = prompt

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, 5] += input_ids.shape[-1] - self.prompt + 1
        return scores


@pytest.mark.parametrize("retry", ["resample", "exclude"])
def test_processors_with_state_roll_back_with_the_row(retry):
    engine = HFRolloutEngine(tiny_model(), SPACE, batch_size=3)
    config = SamplingConfig(max_completion_length=8, backspace_logit_bias=3.0, max_actions=40, retry=retry)
    prompts = [[1, 2], [3, 4], [4, 4]] * 8
    found = engine.rollout(prompts, config, logits_processor=[Remembers()])
    assert sum(len(rollout.trajectory) - appended(rollout) for rollout in found) > 20
    stateless = engine.rollout(prompts, config, logits_processor=[ByLength(2)])
    assert [one.trajectory for one in found] == [one.trajectory for one in stateless]


def test_processors_that_cannot_be_rolled_back_are_refused():
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise TypeError("holds a handle")

        def __call__(self, input_ids, scores):
            return scores

    class EncoderNoRepeatNGramLogitsProcessor(ByLength):
        pass

    engine = HFRolloutEngine(tiny_model(), SPACE)
    config = SamplingConfig(max_completion_length=4)
    for processor, message in (
        (Uncopyable(), "Uncopyable cannot be copied.*holds a handle"),
        (EncoderNoRepeatNGramLogitsProcessor(1), "EncoderNoRepeatNGramLogitsProcessor cannot be rolled back"),
    ):
        with pytest.raises(InputError, match=message):
            engine.rollout([[1]], config, logits_processor=[processor])


def test_a_processor_cannot_make_the_illegal_legal():
    def eager(input_ids, scores):
        return torch.zeros_like(scores).index_fill_(-1, torch.tensor([BKSP]), 50.0)

    rollouts = HFRolloutEngine(tiny_model(), SPACE).rollout(
        PROMPTS,
        SamplingConfig(max_completion_length=4, max_actions=20),
        logits_processor=[type("Eager", (), {"__call__": staticmethod(eager)})()],
    )
    for rollout in rollouts:
        list(states(rollout.trajectory, SPACE))
        assert BKSP in rollout.trajectory.actions


@pytest.fixture
def letters():
    vocab = {"abcdefghijk"[token]: token for token in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a")


class AtTwo(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids[0, -1].item() == 2])


def test_rollouts_stop_at_strings_tokens_and_criteria(letters):
    engine = HFRolloutEngine(tiny_model(sharpness=1.0), SPACE, batch_size=7, tokenizer=letters)
    cases = (
        ({"stop_strings": ("bc", "gg")}, {}, lambda text: text.endswith(("bc", "gg"))),
        ({"stop_token_ids": (2, 6)}, {}, lambda text: text[-1] in "cg"),
        ({}, {"stopping_criteria": [AtTwo()]}, lambda text: text[-1] == "c"),
    )
    for options, plugins, at_stop in cases:
        config = SamplingConfig(max_completion_length=12, **options)
        rollouts = engine.rollout([[1, 2, 1]] * 150, config, **plugins)
        stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
        assert len(stopped) > 5
        for rollout in rollouts:
            text = letters.decode(list(rollout.completion))
            assert (rollout.finish_reason == "stop") == bool(text and at_stop(text))
            assert not rollout.trajectory.terminated or rollout.finish_reason == "eos"
            # No state on the way had it, the prompt before the completion not counted.
            for state in list(states(rollout.trajectory, SPACE))[:-1]:
                assert len(state) == 3 or not at_stop(letters.decode(list(state[3:])))
    with pytest.raises(InputError, match="tokenizer"):
        HFRolloutEngine(tiny_model(), SPACE).rollout(
            [[1]], SamplingConfig(stop_strings=("bc",), max_completion_length=4)
        )
    with pytest.raises(InputError, match="stop strings"):
        engine.rollout([[1]], SamplingConfig(stop_strings=("xyz",), max_completion_length=4))


def test_tokens_of_options_must_be_in_the_vocabulary():
    engine = HFRolloutEngine(tiny_model(), SPACE)
    for options in ({"logit_bias": {VOCAB: 1.0}}, {"stop_token_ids": (VOCAB,)}):
        with pytest.raises(InputError, match="out of range"):
            engine.rollout([[1]], SamplingConfig(max_completion_length=4, **options))


def test_an_interrupt_returns_what_there_is(monkeypatch):
    model = favour(tiny_model(), EOS, 1.0).train()
    count = iter(range(1000))
    step = Decoder.step

    def interrupted(self, tokens, slots):
        if self.cache.capacity != 8 and next(count) == 6:
            raise KeyboardInterrupt
        return step(self, tokens, slots)

    monkeypatch.setattr(Decoder, "step", interrupted)
    engine = HFRolloutEngine(model, SPACE, batch_size=4)
    rollouts = engine.rollout(PROMPTS * 8, SamplingConfig(max_completion_length=30))
    assert len(rollouts) == 32
    reasons = [rollout.finish_reason for rollout in rollouts]
    assert reasons.count("eos") > 3
    cut = [rollout for rollout in rollouts if rollout.finish_reason == "interrupted"]
    assert cut
    assert not any(rollout.trajectory.terminated for rollout in cut)
    assert any(len(rollout.trajectory) for rollout in cut)
    assert len(cut[-1].trajectory) == 0
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(rollouts)
    monkeypatch.undo()
    fresh = engine.rollout(PROMPTS * 8, SamplingConfig(max_completion_length=30))
    assert uninterrupted(fresh) is fresh
    for before, after in zip(rollouts, fresh, strict=True):
        if before.finish_reason == "eos":
            assert before.trajectory == after.trajectory


def test_a_closed_stream_leaves_the_model_as_it_was():
    model = tiny_model().train()
    stream = HFRolloutEngine(model, SPACE).stream(PROMPTS, SamplingConfig(max_completion_length=8))
    next(stream)
    assert not model.training
    assert torch.is_grad_enabled()
    stream.close()
    assert model.training
    assert model.config._attn_implementation == "sdpa"
