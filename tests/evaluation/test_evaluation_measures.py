"""Everything that is measured of a model, together: what `sequencematch evaluate` and studies call."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sequencematch import InputError
from sequencematch.evaluation import (
    METRICS,
    Decoding,
    Evaluation,
    Subject,
    make_questions,
    measure_decoding,
    measure_model,
)
from sequencematch.evaluation.measures import _mauve
from sequencematch.models import action_space, add_backspace_token
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig
from sequencematch.tasks import build_tokenizer, get_task, split

TASK = get_task("star", degree=2, length=4, nodes=9)


def subject(deletions=True, gamma=0.9, **config):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TASK.alphabet)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id, **sizes)
    )
    if deletions:
        add_backspace_token(model, tokenizer, {"<bksp>": 1, "<reset>": "all"})
    space = action_space(model, tokenizer)
    questions = make_questions(split(TASK, 0, 8, 0)["test"], tokenizer, space, task=TASK)
    config = SamplingConfig(**{"max_completion_length": 12, "backspace_logit_bias": 1.0, **config})
    return Subject(HFRolloutEngine(model, space), tokenizer, questions, config, TASK, gamma=gamma)


SAMPLED = Decoding.of({"temperature": 1.0})
EVERYTHING = Evaluation(tuple(name for name in METRICS if name != "mauve"), transcripts=3)


@pytest.fixture(scope="module")
def measured():
    asked = subject()
    return asked, measure_decoding(asked, SAMPLED, EVERYTHING), measure_model(asked, EVERYTHING)


def test_every_number_is_named_and_within_its_interval(measured):
    _, decoded, model = measured
    assert set(EVERYTHING.main) <= set(decoded["metrics"]) | set(model["metrics"])
    for part in (decoded, model):
        assert all(np.isfinite(value) for value in part["metrics"].values())
        for name, (low, high) in part["intervals"].items():
            assert low <= part["metrics"][name] + 1e-9
            assert part["metrics"][name] <= high + 1e-9


def test_questions_sum_up_to_the_metrics(measured):
    _, decoded, _ = measured
    questions, metrics = decoded["questions"], decoded["metrics"]
    assert all(len(values) == 8 for values in questions.values())
    assert metrics["accuracy"] == np.mean(questions["score"])
    assert metrics["actions"] == np.mean(questions["actions"])
    assert metrics["length"] == np.mean(questions["length"])
    assert metrics["deletion_rate"] == pytest.approx(sum(questions["deletions"]) / sum(questions["actions"]))
    assert sum(length * count for length, count in decoded["histograms"]["runs"].items()) == sum(questions["deletions"])


def test_transcripts_carry_rewards_and_values(measured):
    _, decoded, _ = measured
    assert len(decoded["transcripts"]) == 3
    for item in decoded["transcripts"]:
        assert all({"text", "fate", "reward", "value"} == set(piece) for piece in item["pieces"])
    without = measure_decoding(subject(gamma=None), SAMPLED, EVERYTHING)
    assert all({"text", "fate"} == set(piece) for item in without["transcripts"] for piece in item["pieces"])


def test_a_model_without_deletions_has_no_statistics_of_them():
    asked = subject(deletions=False)
    decoded, model = measure_decoding(asked, SAMPLED, EVERYTHING), measure_model(asked, EVERYTHING)
    assert "improved" not in decoded["metrics"]
    assert set(model["metrics"]) == {"perplexity", "perplexity_no_deletion"}


def test_what_was_not_asked_for_is_not_measured(measured):
    asked, _, _ = measured
    only = Evaluation(("text",), transcripts=1)
    found = measure_decoding(asked, SAMPLED, only)
    assert "accuracy" not in found["metrics"]
    assert found["questions"]["score"] == [None] * 8
    assert found["transcripts"][0]["correct"] is None
    assert measure_model(asked, only) == {"metrics": {}, "intervals": {}}


@pytest.mark.parametrize(
    "decoding",
    [
        {"method": "beam", "num_beams": 2},
        {"method": "contrastive", "top_k": 2, "penalty_alpha": 0.4},
        {"method": "best_of", "actions": 40, "allow_backspace": False},
        {"method": "best_of", "actions": 40, "choose": "majority"},
    ],
)
def test_every_way_of_decoding_is_measured(decoding, measured):
    asked, _, _ = measured
    found = measure_decoding(asked, Decoding.of(decoding), Evaluation())
    assert 0 <= found["metrics"]["accuracy"] <= 1
    lengths = np.array(found["questions"]["length"])
    assert (np.array(found["questions"]["actions"]) >= lengths).all()
    if decoding["method"] == "best_of":
        assert found["metrics"]["actions"] >= 40


def test_the_same_mistakes_are_planted_each_time(measured):
    asked, _, model = measured
    assert measure_model(asked, EVERYTHING) == model
    task = measure_model(asked, Evaluation(("detection",), planted="task"))
    assert task["metrics"]["deletes_wrong"] != model["metrics"]["deletes_wrong"]


def test_mauve_compares_with_the_held_out_texts(measured, tmp_path):
    pytest.importorskip("mauve")
    asked, _, _ = measured
    texts = Evaluation(("mauve",), mauve_length=3)
    with pytest.raises(InputError, match="name a folder or id as featurizer"):
        measure_decoding(asked, SAMPLED, texts)
    asked.engine.model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="at least 20 texts"):
        measure_decoding(asked, SAMPLED, Evaluation(("mauve",), mauve_length=3, featurizer=str(tmp_path)))


def test_a_model_that_ends_all_texts_early_has_no_mauve(measured, tmp_path):
    asked, _, _ = measured
    asked.engine.model.save_pretrained(tmp_path)
    many = replace(asked, questions=replace(asked.questions, examples=asked.questions.examples * 10))
    texts = Evaluation(("mauve",), mauve_length=2, featurizer=str(tmp_path))
    count = len(many.questions.examples)
    found = _mauve(many, [[1, 1]] * 5 + [[1]] * (count - 5), texts)
    assert found == {"mauve_texts": 5, "mauve_too_short": 1 - 5 / count}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": ["beauty"]}, "no metric 'beauty'"),
        ({"metrics": []}, "nothing to measure"),
        ({"planted": "model"}, "one of uniform, task, checkpoint, not 'model'"),
        ({"colour": 1}, "evaluation is a mapping with"),
        (["accuracy"], "evaluation is a mapping with"),
    ],
)
def test_what_cannot_be_measured(given, message):
    with pytest.raises(InputError, match=message):
        Evaluation.of(given)


def test_planting_a_tasks_mistakes_needs_a_task(measured):
    asked, _, _ = measured
    without = Subject(asked.engine, asked.tokenizer, asked.questions, asked.config)
    with pytest.raises(InputError, match="needs a task"):
        measure_model(without, Evaluation(("detection",), planted="task"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "magic"}, "no decoding method 'magic'"),
        ({"num_beams": 4}, "'sample' has no option 'num_beams'"),
        ({"method": "best_of"}, "needs 'actions'"),
        ({"method": "best_of", "actions": 9, "choose": "best"}, "by likeliest or majority, not 'best'"),
        ({"temperature": -1}, "temperature must be"),
    ],
)
def test_what_is_no_way_of_decoding(given, message):
    with pytest.raises(InputError, match=message):
        Decoding.of(given)


def test_texts_become_prompts_and_references():
    asked = subject()
    tokenizer, space = asked.tokenizer, asked.engine.space
    from datasets import Dataset

    questions = make_questions(
        Dataset.from_dict({"text": ["abcdef", "fedcba"]}), tokenizer, space, prompt_tokens=2, max_length=6
    )
    first = questions.examples[0]
    assert (first.prompt, first.completion) == ("ab", "cde")  # cut: five tokens after the first
    assert first.prompt_ids[1:] == tuple(tokenizer("ab")["input_ids"])
    with pytest.raises(InputError, match="held-out text 0 has 7 tokens"):
        make_questions(Dataset.from_dict({"text": ["abcdef"]}), tokenizer, space, prompt_tokens=7)


def test_a_checkpoints_own_mistakes_are_planted(measured, tmp_path):
    """The checkpoint knows no deletions; it was the same model before these were added."""
    asked, _, _ = measured
    planted = Evaluation(("detection",), planted="checkpoint")
    with pytest.raises(InputError, match="needs a checkpoint"):
        measure_model(asked, planted)
    before = subject(deletions=False)
    before.engine.model.save_pretrained(tmp_path)
    before.tokenizer.save_pretrained(tmp_path)
    found = measure_model(replace(asked, start=tmp_path), planted)
    assert 0 < found["metrics"]["deletes_wrong"] < 1
    assert measure_model(replace(asked, start=tmp_path), planted) == found
