"""`model.generate(custom_generate=backspace_generate)`: as transformers documents it, with deletions."""

import copy
import threading

import pytest
import torch
from rollout_models import BKSP, BKSP2, EOS, RESET, SPACE, VOCAB, favour, fresh_logits, reference_log_probs, tiny_model
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

from sequencematch import backspace_generate
from sequencematch.errors import InputError
from sequencematch.mdp import replay

IDS = torch.tensor([[0, 0, 1, 2, 3], [5, 6, 7, 1, 2], [0, 4, 4, 3, 1]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1]])


@pytest.fixture
def model():
    found = tiny_model("llama")
    found.config.deletion_actions = {"<bksp>": 1, "<bksp2>": 2, "<reset>": "all"}
    found.config.deletion_token_ids = {"<bksp>": BKSP, "<bksp2>": BKSP2, "<reset>": RESET}
    return found


def generate(model, ids=IDS, mask=MASK, **kwargs):
    kwargs = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "pad_token_id": EOS, **kwargs}
    return model.generate(ids, attention_mask=mask, custom_generate=backspace_generate, **kwargs)


def test_left_padded_batches_come_back_with_completions_behind_them(model):
    output = generate(model, return_dict_in_generate=True, seed=1, num_return_sequences=4)
    assert output.sequences.shape[0] == 12
    assert torch.equal(output.sequences[:, :5], IDS.repeat_interleave(4, 0))
    deletions = 0
    for row, (sequence, rollout) in enumerate(zip(output.sequences, output.rollouts, strict=True)):
        trajectory = rollout.trajectory
        assert trajectory.prompt_ids.tolist() == IDS[row // 4][MASK[row // 4].bool()].tolist()
        ending = [*replay(trajectory, SPACE).completion, *[EOS] * trajectory.terminated]
        assert len(ending) <= 8 + trajectory.terminated
        assert sequence[5:].tolist() == ending + [EOS] * (len(sequence) - 5 - len(ending))
        assert rollout.log_probs == pytest.approx(reference_log_probs(model, trajectory, SPACE), abs=1e-4)
        deletions += sum(action in SPACE.by_token for action in trajectory.actions.tolist())
    assert deletions > 3
    assert len({tuple(sequence.tolist()) for sequence in output.sequences[:4]}) > 1


def test_without_deletions_it_is_generate(model):
    """Greedy decoding, every option of the generation config in force."""
    for options in (
        {},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 4},
        {"bad_words_ids": [[5], [3, 6]]},
        {"suppress_tokens": [1, 2]},
        {"eos_token_id": [EOS, 6]},
        {"forced_eos_token_id": EOS},
        {"sequence_bias": {(4,): -3.0, (5, 1): 2.0}},
        {"prefix_allowed_tokens_fn": lambda row, ids: [row + 1, 6, len(ids) % 7]},
    ):
        never = {"suppress_tokens": [BKSP, BKSP2, RESET, *options.get("suppress_tokens", [])]}
        plain = model.generate(
            IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False, pad_token_id=EOS, **{**options, **never}
        )
        for own in ({"allow_backspace": False}, never):
            ours = generate(model, do_sample=False, **{**options, **own})
            if own is never or not any(token in plain[:, 5:] for token in (BKSP, BKSP2, RESET)):
                assert torch.equal(ours, plain), options


def test_sampling_options_reach_the_distribution(model):
    """What the generation config filters out is never drawn, and the seed is torch's."""
    set_seed(3)
    first = generate(model, top_k=2, temperature=0.7, return_dict_in_generate=True)
    set_seed(3)
    assert torch.equal(generate(model, top_k=2, temperature=0.7), first.sequences)
    assert not torch.equal(generate(model, top_k=2, temperature=0.7), first.sequences)
    for rollout in first.rollouts:
        logits = fresh_logits(model, tuple(rollout.trajectory.prompt_ids.tolist()))
        logits[[BKSP, BKSP2, RESET]] = -torch.inf
        assert rollout.trajectory.actions[0] in logits.topk(2).indices
    # A warper that we have no option for: all of them run as processors.
    only = generate(model, typical_p=0.2, top_p=0.9, num_return_sequences=8)
    assert only.shape[0] == 24


def test_the_knobs_of_deletion(model):
    def share(**kwargs):
        rollouts = generate(model, num_return_sequences=20, return_dict_in_generate=True, seed=0, **kwargs).rollouts
        actions = [action for rollout in rollouts for action in rollout.trajectory.actions.tolist()]
        return sum(action in SPACE.by_token for action in actions) / len(actions)

    assert share(allow_backspace=False) == share(max_deletions=0) == 0
    assert share(backspace_logit_bias=2.0) > share() > share(backspace_logit_bias=-2.0) > 0
    greedy = generate(
        favour(model, BKSP, 20.0), do_sample=False, retry="exclude", max_actions=30, return_dict_in_generate=True
    )
    assert all(len(rollout.trajectory) <= 30 for rollout in greedy.rollouts)


class Sees(LogitsProcessor):
    """Notes what it is shown."""

    def __init__(self):
        self.seen = []

    def __deepcopy__(self, memo):
        return self

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.tolist())
        return scores


class Never(StoppingCriteria):
    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.tolist())
        return torch.tensor([input_ids[0, -1].item() == 7])


def test_processors_and_criteria_see_the_surviving_sequence_with_its_padding(model):
    processor, criterion = Sees(), Never()
    output = generate(
        model,
        seed=0,
        backspace_logit_bias=1.0,
        logits_processor=LogitsProcessorList([processor]),
        stopping_criteria=StoppingCriteriaList([criterion]),
        return_dict_in_generate=True,
    )
    strings = set()
    for row, rollout in enumerate(output.rollouts):
        from sequencematch.mdp import states

        padding = IDS[row][~MASK[row].bool()].tolist()
        strings |= {(*padding, *state) for state in states(rollout.trajectory, SPACE)}
        if rollout.finish_reason == "stop":
            assert rollout.completion[-1] == 7
        assert 7 not in rollout.completion[:-1]
    assert processor.seen
    assert {tuple(ids[0]) for ids in processor.seen[3:]} <= strings | {(*min(strings), 1)}
    assert {tuple(ids[0]) for ids in criterion.seen} <= strings


class Records(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], 0

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended += 1


class Retracts(Records):
    retractions = 0

    def retract(self, count):
        self.retractions += 1
        del self.tokens[len(self.tokens) - count :]


@pytest.mark.parametrize("kind", [Records, Retracts])
def test_streamers_get_the_surviving_sequence(model, kind):
    for seed in range(4):
        streamer = kind()
        output = generate(model, IDS[1:2], MASK[1:2], seed=seed, streamer=streamer, backspace_logit_bias=1.0)
        assert streamer.tokens == output[0].tolist()
        assert streamer.ended == 1
    assert kind is Records or streamer.retractions


def test_an_iterating_streamer_is_not_left_waiting(model):
    class Letters:
        """As much of a tokenizer as a streamer needs."""

        def decode(self, ids, **kwargs):
            return "".join("abcdefghijk"[token] for token in ids)

    streamer = TextIteratorStreamer(Letters(), skip_prompt=True, timeout=60)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(generate(model, IDS[1:2], MASK[1:2], seed=0, streamer=streamer))
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == Letters().decode(found[0][0, 5:].tolist())


def test_what_it_cannot_do_is_said(model):
    for options, message in (
        ({"num_beams": 2, "do_sample": False}, "num_beams"),
        ({"output_scores": True, "return_dict_in_generate": True}, "scores"),
        ({"mask": torch.tensor([[1, 1, 1, 1, 0]] * 3)}, "on the left"),
        ({"max_new_tokens": 100}, "64 positions"),
        ({"streamer": Records()}, "one sequence"),
        ({"guidance_scale": 2.0}, "rolled back"),
    ):
        with pytest.raises(InputError, match=message):
            generate(model, **options)
    plain = copy.deepcopy(model)
    plain.config.deletion_actions = {}
    with pytest.raises(InputError, match="add_backspace_token"):
        generate(plain)
    assert generate(plain, allow_backspace=False).shape[0] == 3
    model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="no eos token"):
        generate(model)


def test_the_model_is_left_as_found(model):
    before = model.config._attn_implementation, model.training
    plain = model.generate(IDS, attention_mask=MASK, max_new_tokens=5, do_sample=False, pad_token_id=EOS)
    generate(model)
    assert (model.config._attn_implementation, model.training) == before
    again = model.generate(IDS, attention_mask=MASK, max_new_tokens=5, do_sample=False, pad_token_id=EOS)
    assert torch.equal(plain, again)
    assert len(model.get_output_embeddings().weight) == VOCAB
