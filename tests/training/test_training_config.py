import pytest

from sequencematch import InputError
from sequencematch.objectives.divergences import DIVERGENCES
from sequencematch.training import SequenceMatchConfig
from sequencematch.training.config import parse_mapping

FINE = {"divergence": "lecam"}
REFUSED = [
    ({"objective": "dpo"}, "objective is one of mle, bc, sequencematch, iql_offline, unlikelihood, not 'dpo'"),
    ({"objective": "SequenceMatch"}, "objective"),
    ({"divergence": "wasserstein"}, "divergence 'wasserstein'"),
    ({"noise_source": "gaussian"}, "noise_source"),
    ({"terminal_value": "one"}, "terminal_value"),
    ({"alpha": -0.1}, "alpha must be at least 0, not -0.1"),
    ({"alpha": float("nan")}, "alpha"),
    ({"gamma": 0.0}, "gamma"),
    ({"gamma": 1.0}, "gamma"),
    ({"gamma": -0.5}, "gamma"),
    ({"gamma": float("nan")}, "gamma"),
    ({"iql_lambda": -1.0}, "iql_lambda"),
    ({"bc_warmup_steps": -1}, "bc_warmup_steps"),
    ({"bc_anneal_steps": -1}, "bc_anneal_steps"),
    ({"bc_final_weight": -0.1}, "bc_final_weight"),
    ({"bc_final_weight": 1.1}, "bc_final_weight"),
    ({"noise_rate": -0.1}, "noise_rate"),
    ({"noise_rate": 1.1}, "noise_rate"),
    ({"noise_max_run": 0}, "noise_max_run"),
    ({"noise_action_weight": -0.1}, "noise_action_weight"),
    ({"noise_action_weight": 1.1}, "noise_action_weight"),
    ({"rollout_steps": -1}, "rollout_steps"),
    ({"num_generations": 0}, "num_generations"),
    ({"replay_buffer_size": 0}, "replay_buffer_size"),
    ({"objective": "mle", "noise_source": "uniform"}, "'mle' learns from the expert without mistakes"),
    ({"divergence": "chi2_mixture"}, "'chi2_mixture' needs rollouts"),
    ({"divergence": "chi2_mixture", "rollout_steps": 0, "noise_source": "rollout"}, "needs rollouts"),
]
REFUSED_ELSEWHERE = [
    ({"temperature": -1.0}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"max_completion_length": 0}, "max_completion_length"),
    ({"max_actions": 0}, "max_actions"),
    ({"max_staleness": -1}, "max_staleness"),
    ({"generation_batch_size": 0}, "generation_batch_size|batch_size"),
    ({"max_length": 0}, "max_length"),
    ({"max_length": -3}, "max_length"),
]
"""Impossible whatever the model and the data are, so the configuration is the place to say so."""


def name_of(case):
    return "-".join(f"{key}={value}" for key, value in case[0].items())


@pytest.mark.parametrize("case", [*REFUSED, *REFUSED_ELSEWHERE], ids=name_of)
def test_impossible_and_contradictory_options_are_refused(case, tmp_path):
    options, message = case
    with pytest.raises(InputError, match=message):
        SequenceMatchConfig(output_dir=str(tmp_path / "out"), **{**FINE, **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0, "gamma": 0.5, "iql_lambda": 0.0},
        {"bc_final_weight": 1.0, "noise_rate": 1.0, "noise_action_weight": 0.0},
        {"divergence": "chi2_mixture", "rollout_steps": 1},
        {"divergence": "chi2_mixture", "objective": "bc"},
        {"divergence": "chi2_mixture", "objective": "mle"},
        {"divergence": "chi2_mixture", "objective": "iql_offline", "noise_source": "model"},
        {"temperature": 0.0, "top_k": 1, "max_staleness": 0, "max_length": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_is_allowed(options, tmp_path):
    SequenceMatchConfig(output_dir=str(tmp_path), **{**FINE, **options})


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_is_known(name, tmp_path):
    assert SequenceMatchConfig(output_dir=str(tmp_path), divergence=name, rollout_steps=5).divergence == name


def test_every_option_says_what_it_does():
    from dataclasses import fields

    from transformers import TrainingArguments

    own = {field.name for field in fields(SequenceMatchConfig)} - {field.name for field in fields(TrainingArguments)}
    assert own
    for field in fields(SequenceMatchConfig):
        if field.name in own:
            assert field.metadata["help"].endswith("."), field.name


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, {}), ({}, {}), ("{}", {}), ("null", {}), ({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1})],
)
def test_a_mapping_is_a_mapping_or_json(value, expected):
    assert parse_mapping(value, "deletions") == expected


@pytest.mark.parametrize("value", ["{a: 1}", "[1]", "3", [1], 3, "", "all"])
def test_what_is_no_mapping_is_refused(value):
    with pytest.raises(InputError, match="deletions must be a mapping"):
        parse_mapping(value, "deletions")
