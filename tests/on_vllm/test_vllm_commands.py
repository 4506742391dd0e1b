"""The commands on vLLM in this process, against this library's own engine: greedy, so that both must agree."""

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sequencematch.cli.main import main
from sequencematch.study import Study, run_studies

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
