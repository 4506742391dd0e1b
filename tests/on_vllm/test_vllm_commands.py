"""The commands on vLLM in this process, against this library's own engine: greedy, so that both must agree."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sequencematch.cli.main import main
from sequencematch.study import Study, run_studies
from sequencematch.training.run import Run, make_trainer

sys.path.append(str(Path(__file__).parents[1] / "study"))
from study_files import tiny

# vLLM runs heads of 32 on a CPU.
SIZES = {"hidden_size": 64, "num_attention_heads": 2}
LIMITS = ("--max_actions", "12", "--max_completion_length", "4")
TASK = ("--task", "star", "--task_options", '{"degree": 2, "length": 2, "nodes": 8}', "--test_size", "20")


@pytest.fixture(scope="module")
def options():
    options = tiny()["options"]
    return options | {"from_scratch": options["from_scratch"] | SIZES}


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "run.json"
    config.write_text(json.dumps({**options, "objective": "bc", "max_steps": 20, "output_dir": str(folder)}))
    assert main(["train", "--config", str(config)]) == 0
    return folder


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_generate(trained, capsys):
    command = ("generate", "--model", str(trained), "--prompt", "abbcadde|ae=", *LIMITS)
    command += ("--temperature", "0", "--retry", "exclude")
    assert printed(capsys, *command, "--engine", "vllm") == printed(capsys, *command)


def test_evaluate(trained, capsys):
    command = ("evaluate", "--model", str(trained), *TASK, *LIMITS, "--modes", "greedy", "greedy_exclude")
    found, expected = (json.loads(printed(capsys, *command, *more)) for more in (("--engine", "vllm"), ()))
    for report in (found, expected):
        for numbers in report["models"][str(trained)].values():
            numbers.get("metrics", numbers).pop("seconds", None)
    assert found == expected


def test_training_rolls_out_with_the_weights_of_its_step(options, tmp_path):
    given = {"divergence": "chi2_mixture", "rollout_steps": 2, "replay_buffer_size": 1000, "use_vllm": True}
    adapters = {"use_peft": True, "lora_r": 2, "lora_alpha": 2, "lora_target_modules": ["all-linear"]}
    run = Run.from_options(
        {**options, **given, **adapters, "max_steps": 5, "learning_rate": 0.01, "output_dir": str(tmp_path)}
    )
    trainer = make_trainer(run)
    trainer.train()
    assert sorted({walk.policy_version for walk in trainer.batches.buffer.contents}) == [0, 2, 4]
    trainer.batches.engine.update(5)
    prompts = [walk.prompt_ids for walk in trainer.batches.buffer.contents[:20]]
    rollouts = trainer.batches.engine.rollout(prompts, run.training.sampling())
    batch = trainer.batches.collate([rollout.trajectory for rollout in rollouts])
    with torch.no_grad():
        steps = trainer.states(trainer.model.eval(), batch)
    sampled = torch.cat([torch.tensor(rollout.log_probs) for rollout in rollouts])
    torch.testing.assert_close((steps.q - steps.v).double(), sampled.double(), rtol=1e-4, atol=1e-4)


def test_a_study(options, tmp_path):
    decoding = {"greedy": {"temperature": 0, "retry": "exclude"}}
    given = tiny(options=options, seeds=[0], decoding=decoding)
    answers = {}
    for engine in ("hf", "vllm"):
        study = Study.of(engine, {**given, "evaluation": {"engine": engine}})
        run_studies([study], [tmp_path / engine], tmp_path / "store", Console(quiet=True), 1)
        results = [json.loads(line) for line in (tmp_path / engine / "results.jsonl").read_text().splitlines()]
        metrics = [(entry["cell"], entry["metrics"]) for entry in results]
        answers[engine] = [(cell, found["accuracy"], found["actions"], found["length"]) for cell, found in metrics]
    assert answers["vllm"] == answers["hf"]
    assert len(answers["vllm"]) == 2
