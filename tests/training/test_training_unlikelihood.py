"""The objective `unlikelihood` in the trainer."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from training_runs import TASK, example_rows, logs, new_model, new_trainer, no_dropout, same_weights, weights

from sequencematch import InputError
from sequencematch.objectives import unlikelihood_loss_reference
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig
from sequencematch.training import SequenceMatchConfig

LETTERS = TASK.alphabet[:6]
PLAIN = {"deletions": {}, **no_dropout()}


def repetitive(count=64, length=12, share=0.5, seed=0):
    """Texts in which each letter is the one before with probability `share`, or else any."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        letters = rng.integers(len(LETTERS), size=length)
        for place in range(1, length):
            if rng.random() < share:
                letters[place] = letters[place - 1]
        texts.append({"text": "".join(LETTERS[letter] for letter in letters)})
    return Dataset.from_list(texts)


def new_run(folder, **options):
    data = repetitive()
    options = {"objective": "unlikelihood", "model_options": PLAIN, **options}
    return new_trainer(folder, train=data, test=data, **options)


def by_hand(trainer, examples, weight):
    """The loss of an action on average, from an ordinary forward pass for each example."""
    rows, model = [], trainer.model.eval()
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        with torch.no_grad():
            rows.append(model(ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1))
    return unlikelihood_loss_reference(
        rows,
        [example.prompt_ids for example in examples],
        [example.completion_ids for example in examples],
        weight=weight,
        never=(trainer.space.eos_token_id,),
        denominator=sum(len(example.completion_ids) for example in examples),
    ).item()


def test_it_needs_no_noise_and_no_deletions(tmp_path):
    trainer = new_run(tmp_path)
    assert (trainer.args.noise_source, trainer.args.unlikelihood_weight) == ("none", 1.0)
    assert trainer.space.deletions == ()


def test_a_model_that_has_deletions_keeps_them(tmp_path):
    trainer = new_run(tmp_path, model_options=no_dropout(), max_steps=1)
    trainer.train()
    assert [deletion.length for deletion in trainer.space.deletions] == ["all"]
    assert "backspace/after_right" in logs(trainer)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_source": "uniform"}, "'unlikelihood' learns from the expert without mistakes"),
        ({"unlikelihood_weight": -1.0}, "unlikelihood_weight must be at least 0"),
    ],
)
def test_options_that_it_does_not_take(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        SequenceMatchConfig(output_dir=str(tmp_path), objective="unlikelihood", **options)


def test_the_loss_is_a_mean_over_the_actions_of_the_batch(tmp_path):
    trainer = new_run(tmp_path, unlikelihood_weight=0.7, per_device_train_batch_size=64, max_steps=1)
    examples = example_rows(trainer, 64)
    expected, likelihood = (by_hand(trainer, examples, weight) for weight in (0.7, 0.0))
    trainer.train()
    entry = logs(trainer)[0]
    assert entry["loss"] == pytest.approx(expected, abs=1e-5)
    assert entry["objective/bc"] == pytest.approx(likelihood, abs=1e-5)
    assert entry["objective/unlikelihood"] == pytest.approx((expected - likelihood) / 0.7, abs=1e-5)


def test_evaluation_reports_the_likelihood_alone(tmp_path):
    trainer = new_run(tmp_path)
    expected = by_hand(trainer, example_rows(trainer, 64), 0.0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_without_a_weight_it_is_maximum_likelihood(tmp_path):
    losses = []
    for options in ({"objective": "mle"}, {"unlikelihood_weight": 0.0}):
        trainer = new_run(tmp_path, max_steps=5, **options)
        trainer.train()
        losses.append([entry["loss"] for entry in logs(trainer)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_gradient_accumulation_changes_nothing(tmp_path):
    found = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        trainer = new_run(
            tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, optim="sgd"
        )
        trainer.train()
        found.append((weights(trainer), [entry["loss"] for entry in logs(trainer)]))
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-4, atol=1e-6)
    untrained, _ = new_model(**PLAIN)
    assert not same_weights(found[0][0], untrained.state_dict())


def repeats(trainer):
    """The share of tokens that are the one before, in endless greedy completions of all two-letter texts."""
    tokenizer = trainer.processing_class
    prompts = [tokenizer(f"{tokenizer.bos_token}{a}{b}")["input_ids"] for a in LETTERS for b in LETTERS]
    engine = HFRolloutEngine(trainer.model, trainer.space)
    endless = {trainer.space.eos_token_id: -np.inf}
    rollouts = engine.rollout(prompts, SamplingConfig(temperature=0.0, logit_bias=endless, max_completion_length=8))
    strings = [(prompt[-1], *rollout.completion) for prompt, rollout in zip(prompts, rollouts, strict=True)]
    return np.mean([first == second for string in strings for first, second in pairwise(string)])


def test_it_repeats_less_than_maximum_likelihood(tmp_path):
    """Repeating is the likeliest single step here, at one third, and so what maximum likelihood does greedily."""
    data, shares, penalties = repetitive(256, share=0.2), [], []
    for weight in (0.0, 3.0):
        trainer = new_trainer(
            tmp_path,
            train=data,
            objective="unlikelihood",
            unlikelihood_weight=weight,
            model_options=PLAIN,
            per_device_train_batch_size=16,
            max_steps=60,
            logging_steps=20,
        )
        trainer.train()
        shares.append(repeats(trainer))
        penalties.append(logs(trainer)[-1]["objective/unlikelihood"])
    assert shares[0] > 0.9
    assert shares[1] < 0.85
    assert penalties[1] < 0.7 * penalties[0]
