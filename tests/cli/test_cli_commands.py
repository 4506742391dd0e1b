import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from cli_runs import OPTIONS, PROMPT, TASK_OPTIONS, write_config, write_rows

from sequencematch import __version__
from sequencematch.cli.main import COMMANDS, main
from sequencematch.evaluation import MODES
from sequencematch.tasks import get_task, split

SHORT = ["--max_completion_length", "4"]
TASK = ["--task", "star", "--task_options", json.dumps(TASK_OPTIONS), "--test_size", "16"]


def output_of(capsys, arguments):
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(command in usage for command in COMMANDS)


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "demo"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: sequencematch {command}" in capsys.readouterr().out


def test_version(capsys):
    assert output_of(capsys, ["--version"]) == f"sequencematch {__version__}\n"


def test_train_saves_a_model_that_transformers_reads(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"} <= set(os.listdir(trained))
    assert json.loads((trained / "trainer_state.json").read_text())["global_step"] == 40
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert model.config.deletion_actions == {"<reset>": "all"}
    assert len(AutoTokenizer.from_pretrained(trained)) == model.get_input_embeddings().num_embeddings


def test_train_resumes_to_the_same_model(trained, tmp_path):
    flags = ["--max_steps", "40", "--resume_from_checkpoint", str(trained / "checkpoint-20")]
    assert main([*write_config(tmp_path), *flags]) == 0
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (trained / name).read_bytes()


def test_flags_win_over_the_file(tmp_path):
    assert main([*write_config(tmp_path), "--max_steps", "1", "--output_dir", str(tmp_path / "other")]) == 0
    assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "other" / "trainer_state.json").read_text())["global_step"] == 1


@pytest.mark.parametrize("rows", [[{"text": "abac"}] * 8, [{"prompt": PROMPT, "completion": "c"}] * 8])
def test_train_goes_on_from_a_saved_model_and_a_file(rows, trained, tmp_path):
    changes = {"task": None, "noise_source": "uniform", "from_scratch": None, "model_name_or_path": str(trained)}
    changes |= {"dataset_name": write_rows(tmp_path, rows), "max_steps": 2}
    assert main(write_config(tmp_path, **changes)) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_train_with_evaluation_logs_it(tmp_path):
    assert main(write_config(tmp_path, eval_strategy="steps", eval_steps=5)) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [5]


def test_defaults_train_without_a_warning_where_there_is_no_accelerator(tmp_path):
    arguments = write_config(tmp_path, max_steps=1)
    path = tmp_path / "run.yaml"
    path.write_text(path.read_text().replace("dataloader_pin_memory: false\n", ""))
    assert main(arguments) == 0


def test_generate_prints_json_lines(trained, capsys):
    flags = ["--json", "--num_generations", 3, "--seed", 1, *SHORT]
    lines = output_of(capsys, ["generate", "--model", trained, "--prompt", PROMPT, *flags]).splitlines()
    assert len(lines) == 3
    for found in map(json.loads, lines):
        assert set(found) == {"completion", "completion_ids", "actions", "log_probs", "transcript", "finish_reason"}
        assert len(found["actions"]) == len(found["log_probs"]) == len(found["transcript"])
        assert all(log_prob <= 0 for log_prob in found["log_probs"])
        assert found["completion"] == "".join(p["text"] for p in found["transcript"] if p["fate"] == "kept")
        assert len(found["completion_ids"]) <= 4
        assert found["finish_reason"] in ("eos", "max_completion_length", "max_actions", "no_legal_action")


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_the_seed_decides_what_is_generated(temperature, trained, capsys):
    arguments = ["generate", "--model", trained, "--prompt", PROMPT, "--json", "--temperature", temperature]
    arguments += ["--num_generations", 4, "--max_completion_length", 20]
    first, again, other = (output_of(capsys, [*arguments, "--seed", seed]) for seed in (1, 1, 2))
    assert first == again
    assert (first == other) == (temperature == "0")
    # Rows of one batch differ by rounding, which the log-probabilities may show.
    actions = [json.loads(line)["actions"] for line in first.splitlines()]
    assert (actions == [actions[0]] * 4) == (temperature == "0")


def test_deletions_can_be_forbidden_or_favoured(trained, capsys):
    arguments = ["generate", "--model", trained, "--prompt", PROMPT, "--json", "--num_generations", 8, *SHORT]

    def deletions(*flags):
        found = [json.loads(line) for line in output_of(capsys, [*arguments, *flags]).splitlines()]
        return sum(piece["fate"] == "deletion" for one in found for piece in one["transcript"])

    assert deletions("--no_backspace", "--backspace_logit_bias", 5) == 0
    assert deletions("--backspace_logit_bias", 5) > 20
    assert 0 < deletions("--backspace_logit_bias", 5, "--max_deletions", 1) <= 8


def test_an_empty_prompt_starts_a_text(trained, capsys):
    assert json.loads(output_of(capsys, ["generate", "--model", trained, "--prompt", "", "--json", *SHORT]))


def test_generate_shows_the_prompt_and_what_became_of_it(trained, capsys):
    arguments = ["generate", "--model", trained, "--prompt", PROMPT, "--temperature", "0", *SHORT]
    shown = output_of(capsys, arguments)
    transcript = json.loads(output_of(capsys, [*arguments, "--json"]))["transcript"]
    assert PROMPT + "".join(piece["text"] for piece in transcript) in shown


@pytest.mark.parametrize("hold_back", [0, 3])
def test_generate_can_show_the_text_as_it_stands(hold_back, trained, capsys):
    arguments = ["generate", "--model", trained, "--prompt", PROMPT, "--backspace_logit_bias", 3, "--seed", 3]
    arguments += ["--max_completion_length", 12, "--num_generations", 2]
    shown = output_of(capsys, [*arguments, "--hold_back", hold_back])
    found = [json.loads(line) for line in output_of(capsys, [*arguments, "--json"]).splitlines()]
    assert any(piece["fate"] == "deletion" for one in found for piece in one["transcript"])
    assert shown.split() == [PROMPT + one["completion"] for one in found]


def test_generate_stops_at_a_text(trained, capsys):
    arguments = ["generate", "--model", trained, "--prompt", PROMPT, "--json", "--stop", "a", "--num_generations", 9]
    found = [json.loads(line) for line in output_of(capsys, [*arguments, "--max_completion_length", 20]).splitlines()]
    assert any(one["finish_reason"] == "stop" for one in found)
    for one in found:
        assert ("a" in one["completion"]) == (one["finish_reason"] == "stop")
        assert "a" not in one["completion"][:-1]


@pytest.mark.parametrize("flags", [[], ["--hold_back", 0], ["--json"]])
def test_an_interrupt_leaves_what_was_generated(flags, trained, capsys, monkeypatch):
    from sequencematch.rollouts.decoder import Decoder

    count, step = iter(range(1000)), Decoder.step

    def interrupted(self, tokens, slots):
        if self.cache.capacity != 8 and next(count) == 3:  # not in the check of the model
            raise KeyboardInterrupt
        return step(self, tokens, slots)

    monkeypatch.setattr(Decoder, "step", interrupted)
    arguments = ["generate", "--model", trained, "--prompt", PROMPT, "--max_completion_length", 15, "--no_backspace"]
    arguments += ["--num_generations", 5, "--temperature", 50, *flags]
    assert main([str(argument) for argument in arguments]) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    if "--json" in flags:
        lengths = [len(json.loads(line)["completion_ids"]) for line in captured.out.splitlines()]
    else:
        lengths = [len(line) - len(PROMPT) for line in captured.out.split()]
    assert len(lengths) == 5
    assert max(lengths) >= 2


def wilson(right, n, z=1.959963984540054):
    """The 95% Wilson interval, written out."""
    p = right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def test_evaluate_a_task(trained, capsys, tmp_path):
    output = tmp_path / "scores.json"
    arguments = ["evaluate", "--model", trained, *TASK, *SHORT, "--modes", *MODES, "--output", output]
    printed = output_of(capsys, arguments)
    report = json.loads(printed)
    assert json.loads(output.read_text()) == report
    assert report["comparisons"] == []
    assert list(report["models"]) == [str(trained)]
    scores = report["models"][str(trained)]
    assert list(scores) == list(MODES)
    for name, found in scores.items():
        score = found["metrics"]
        right = score["accuracy"] * 16
        assert right == pytest.approx(round(right))
        assert found["intervals"]["accuracy"] == pytest.approx(wilson(round(right), 16))
        assert 1 <= score["actions"] <= 32
        assert (score["deletion_rate"] == 0) if "no_deletion" in name else (0 <= score["deletion_rate"] <= 1)
        assert 0 <= score["truncated"] <= 1


def test_evaluate_shows_a_table_beside_the_json(trained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["evaluate", "--model", str(trained), *TASK, *SHORT])
    output = capsys.readouterr()
    assert list(json.loads(output.out)["models"][str(trained)]) == ["sampled", "greedy"]
    assert "95% interval" in output.err


def test_evaluate_against_a_baseline_with_other_decoding_and_perplexity(trained, capsys, monkeypatch, tmp_path):
    baseline = shutil.copytree(trained, tmp_path / "other")
    arguments = ["evaluate", "--model", trained, "--baseline", baseline, *TASK, *SHORT, "--modes", "greedy"]
    arguments += ["--decoding", '{"hot": {"temperature": 3.0}}', "--metrics", "accuracy", "perplexity"]
    report = json.loads(output_of(capsys, arguments))
    one, other = report["models"].values()
    for found in (one, other):
        assert set(found) == {"model", "greedy", "hot"}
        assert found["model"]["metrics"]["perplexity"] >= found["model"]["metrics"]["perplexity_no_deletion"] > 1
        for part in found.values():
            part["metrics"].pop("seconds", None)
    assert one == other
    for row in report["comparisons"]:
        assert (row["difference"], row["p_adjusted"]) == (0, 1)


def test_evaluate_texts(trained, capsys, tmp_path):
    rows = [{"text": "abcdefghabcdefgh"}, {"text": "hgfedcbahgfedcba"}]
    arguments = ["evaluate", "--model", trained, "--dataset_name", write_rows(tmp_path, rows), "--modes", "sampled"]
    arguments += ["--metrics", "text", "perplexity", "--prompt_tokens", 3, "--max_completion_length", 12]
    ((_, found),) = json.loads(output_of(capsys, arguments))["models"].items()
    assert "accuracy" not in found["sampled"]["metrics"]
    assert 0 <= found["sampled"]["metrics"]["diversity"] <= 1
    assert found["model"]["intervals"]["perplexity"][0] <= found["model"]["metrics"]["perplexity"]


def test_evaluate_a_data_set_by_exact_match(trained, capsys, tmp_path):
    """The model's own greedy answers are what it is asked for, but for one."""
    rows = []
    for row in split(get_task("star", **TASK_OPTIONS), 0, 6, 0)["test"]:
        arguments = ["generate", "--model", trained, "--prompt", row["prompt"], "--json", "--temperature", 0, *SHORT]
        found = json.loads(output_of(capsys, arguments))
        rows.append({"prompt": row["prompt"], "completion": found["completion"]})
        assert found["finish_reason"] == "eos"
        assert found["completion"]
    rows[0]["completion"] += "a"
    arguments = ["evaluate", "--model", trained, "--dataset_name", write_rows(tmp_path, rows), "--modes", "greedy"]
    found = json.loads(output_of(capsys, [*arguments, *SHORT]))["models"][str(trained)]["greedy"]
    assert found["metrics"]["accuracy"] == pytest.approx(5 / 6)
    assert found["intervals"]["accuracy"] == pytest.approx(wilson(5, 6))


def test_evaluate_answers_the_questions_held_out_in_training(trained, capsys, monkeypatch):
    import sequencematch.cli.evaluate as command

    asked = []
    measure = command.measure_decoding

    def spy(subject, *rest):
        examples = subject.questions.examples
        asked.extend({"prompt": example.prompt, "completion": example.completion} for example in examples)
        return measure(subject, *rest)

    monkeypatch.setattr(command, "measure_decoding", spy)
    output_of(capsys, ["evaluate", "--model", trained, *TASK, *SHORT, "--modes", "greedy"])
    held_out = split(get_task("star", **TASK_OPTIONS), OPTIONS["train_size"], 16, 0)
    assert asked == held_out["test"].to_list()
    assert not {row["prompt"] for row in asked} & set(held_out["train"]["prompt"])


def test_generate_in_a_process_of_its_own_prints_nothing_else(trained):
    arguments = ["generate", "--model", str(trained), "--prompt", PROMPT, "--json", *SHORT]
    command = [sys.executable, "-m", "sequencematch.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["finish_reason"]
