from pathlib import Path

import pytest
import yaml

from sequencematch import InputError
from sequencematch.demo import demo_studies
from sequencematch.training.run import Run, make_trainer

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"))
NUMBERS = ("learning_rate", "alpha", "gamma", "noise_rate", "weight_decay", "bc_final_weight", "temperature", "top_p")


@pytest.fixture
def config(tmp_path):
    """`config(options or text)`: the flags that name a YAML file with them."""

    def write(content):
        path = tmp_path / "run.yaml"
        if isinstance(content, dict):
            content = yaml.safe_dump({"output_dir": str(tmp_path / "out"), "divergence": "lecam", **content})
        path.write_text(content)
        return ["--config", str(path)]

    yield write
    assert not (tmp_path / "out").exists()


def test_a_file_gives_the_options_and_flags_win(config):
    options = {"task": "star", "learning_rate": 3e-3, "max_steps": 7, "logging_strategy": "steps"}
    run = Run.parse([*config(options), "--learning_rate", "1e-5", "--alpha=0.25"])
    assert (run.data.task, run.training.max_steps) == ("star", 7)
    assert (run.training.learning_rate, run.training.alpha) == (1e-5, 0.25)
    assert run.training.gamma == 0.998


def test_the_file_may_follow_an_equals_sign(config):
    _, path = config({"max_steps": 7})
    assert Run.parse([f"--config={path}"]).training.max_steps == 7


def test_flags_alone_will_do(tmp_path):
    run = Run.parse(["--output_dir", str(tmp_path / "out"), "--divergence", "lecam", "--model_name_or_path", "gpt2"])
    assert run.model.model_name_or_path == "gpt2"


def test_a_number_with_an_exponent_and_no_point_is_a_number(config):
    run = Run.parse(config("output_dir: nowhere\ndivergence: lecam\nlearning_rate: 3e-4\nalpha: 1e-2\n"))
    assert (run.training.learning_rate, run.training.alpha) == (3e-4, 1e-2)


@pytest.mark.parametrize(
    ("part", "name"), [("training", "deletions"), ("data", "task_options"), ("data", "from_scratch")]
)
def test_mappings_come_as_yaml_and_as_json(part, name, config):
    from sequencematch.training.config import parse_mapping

    value = {"<reset>": "all", "length": 2}
    as_yaml = Run.parse(config({name: value}))
    as_json = Run.parse([*config({}), f"--{name}", '{"<reset>": "all", "length": 2}'])
    assert parse_mapping(getattr(getattr(as_yaml, part), name), name) == value
    assert parse_mapping(getattr(getattr(as_json, part), name), name) == value


def test_no_deletions_is_an_empty_mapping(config):
    assert Run.parse(config({"deletions": {}})).training.deletions == {}
    assert Run.parse([*config({}), "--deletions", "{}"]).training.deletions == {}
    assert Run.parse(config({})).training.deletions is None


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        ({"lerning_rate": 1}, [], "no option 'lerning_rate'; did you mean 'learning_rate'"),
        ({"zzz": 1}, [], "no option 'zzz'; see sequencematch train --help"),
        ({}, ["--lerning_rate", "1"], "no option 'lerning_rate'; did you mean 'learning_rate'"),
        ({}, ["--zzz"], "no option 'zzz'"),
        # What is misspelt comes before what is therefore missing.
        (
            {"divergence": "chi2_mixture", "rolout_steps": 9},
            [],
            "no option 'rolout_steps'; did you mean 'rollout_steps'",
        ),
        ({"divergence": "chi2_mixture"}, ["--rolout_steps", "9"], "no option 'rolout_steps'"),
        ({}, ["stray"], "no option 'stray'"),
        ({"max_steps": "many"}, [], "max_steps.*'many'"),
        ({}, ["--max_steps", "many"], "max_steps.*'many'"),
        ({"truncate_long": "perhaps"}, [], "truncate_long"),
        ({"num_generations": 1.5}, [], "num_generations"),
        ({"max_steps": [1, 2]}, [], "max_steps"),
        ({"learning_rate": {"start": 1}}, [], "learning_rate"),
        ({"alpha": -1}, [], "alpha must be at least 0"),
    ],
)
def test_unknown_options_and_wrong_types(options, flags, message, config):
    with pytest.raises(InputError, match=message):
        Run.parse([*config(options), *flags])


@pytest.mark.parametrize(
    "text",
    ["- a\n- b\n", "", "just text", "a: [1\nb: }", "\tmax_steps: 1"],
    ids=["list", "empty", "text", "broken", "tab"],
)
def test_a_file_that_is_no_mapping(text, config):
    with pytest.raises(InputError, match=r"run\.yaml"):
        Run.parse(config(text))


@pytest.mark.parametrize("name", ["missing.yaml", ""], ids=["missing", "a folder"])
def test_a_file_that_is_not_there(name, tmp_path):
    with pytest.raises(InputError, match=r"configuration file .*"):
        Run.parse(["--config", str(tmp_path / name)])


def test_config_without_a_file():
    with pytest.raises(InputError, match="config"):
        Run.parse(["--divergence", "lecam", "--config"])


def test_from_options_knows_the_same_keys(tmp_path):
    run = Run.from_options({"output_dir": str(tmp_path), "divergence": "lecam", "task": "star", "max_steps": 3})
    assert (run.data.task, run.training.max_steps) == ("star", 3)
    with pytest.raises(InputError, match="did you mean 'max_steps'"):
        Run.from_options({"output_dir": str(tmp_path), "max_step": 3})


def check_parses(options):
    run = Run.from_options(options)
    for name in NUMBERS:
        assert isinstance(getattr(run.training, name), float | int), f"{name}: write 1.0e-3 for 1e-3"
    return run


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_shipped_configuration_parses(path):
    check_parses(yaml.safe_load(path.read_text()))
    Run.parse(["--config", str(path)])


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_every_run_of_the_demo_parses(quick, tmp_path):
    for study in demo_studies(quick):
        pretraining = study.pretraining()
        for options in (*([pretraining] if pretraining else []), *(cell.options for cell in study.cells)):
            assert check_parses({**options, "output_dir": str(tmp_path / "out")}).data.from_scratch
    assert not list(tmp_path.iterdir())


SMALL = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


def star_run(tmp_path, **changes):
    options = {
        "task": "star",
        "task_options": {"degree": 2, "length": 1, "nodes": 8},
        "train_size": 16,
        "test_size": 4,
        "from_scratch": SMALL,
        "objective": "bc",
        "report_to": "none",
        "output_dir": str(tmp_path / "out"),
    }
    return Run.from_options({**options, **changes})


def test_a_run_makes_its_model_tokenizer_and_data(tmp_path):
    trainer = make_trainer(star_run(tmp_path, deletions={"<reset>": "all", "<bksp>": 1}, eval_strategy="steps"))
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (16, 4)
    assert trainer.model.config.deletion_actions == {"<reset>": "all", "<bksp>": 1}
    assert trainer.space.vocab_size == len(trainer.processing_class) == 4 + 8 + 2 + 2
    assert trainer.model.config.n_embd == 16


def test_the_seed_decides_the_new_model(tmp_path):
    import torch

    first, second, other = (
        make_trainer(star_run(tmp_path, seed=seed)).model.get_input_embeddings().weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from_scratch": {**SMALL, "n_layers_": 3}}, "from_scratch.*'n_layers_'"),
        ({"from_scratch": {"n_embd": 16}}, "from_scratch"),
        ({"from_scratch": {**SMALL, "model_type": "gpt9"}}, "from_scratch.*gpt9"),
        ({"from_scratch": {**SMALL, "n_embd": 15}}, "from_scratch"),
        ({"from_scratch": {"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 1}}, "not supported"),
        ({"from_scratch": "gpt2"}, "from_scratch must be a mapping"),
        ({"from_scratch": None}, "no model to train"),
        ({"from_scratch": None, "task": None, "dataset_name": "x.jsonl"}, "x.jsonl|no model to train"),
        ({"task": None}, "no data to train on"),
        ({"task": "chess"}, "no task 'chess'"),
        ({"task_options": {"degrees": 2}}, "no option 'degrees'"),
        ({"task_options": "3"}, "task_options must be a mapping"),
        ({"train_size": 10**6}, "different prompts"),
        ({"train_size": -1}, "train_size"),
        ({"dataset_train_split": "practice"}, "train, test"),
        ({"deletions": {"<bksp>": 0}}, "deletion's length"),
        ({"deletions": {"<bksp>": "some"}}, "deletion's length"),
        ({"deletions": "3"}, "deletions must be a mapping"),
        ({"deletions": {}, "noise_source": "uniform"}, "no deletion action"),
        ({"from_scratch": {**SMALL, "n_positions": 6}}, "position|n_positions|max_length"),
        (
            {
                "from_scratch": {**SMALL, "n_positions": 12},
                "objective": "sequencematch",
                "divergence": "chi2_mixture",
                "rollout_steps": 1,
            },
            "position|max_completion_length",
        ),
    ],
)
def test_runs_that_cannot_be_made(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make_trainer(star_run(tmp_path, **changes))
    assert not (tmp_path / "out").exists()
