"""The shipped recipes, unchanged but for the size of model and data; what a dry run shows; where logs go."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from cli_runs import PROMPT, write_config

from sequencematch import load_model, load_tokenizer
from sequencematch.cli.main import main
from sequencematch.tasks import build_tokenizer

RECIPES = Path(__file__).parents[2] / "examples" / "configs"
ALPHABET = "abcdefghijkl =+"
LESS = ["--max_steps", "3", "--logging_steps", "1", "--save_steps", "2", "--warmup_steps", "0"]
SCHEDULE = ["--bc_warmup_steps", "1", "--bc_anneal_steps", "1", "--max_completion_length", "8"]
SHORT = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]


@pytest.fixture
def base(tmp_path):
    """A small Llama without deletions in a folder, its head apart from its embedding."""
    tokenizer = build_tokenizer(ALPHABET)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=1100, tie_word_embeddings=False, **special, **sizes
    )
    folder = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_data(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@torch.no_grad()
def row_moved(folder):
    """How far the deletion token's output row in the saved model is from the mean of the others, where it started."""
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    bksp = tokenizer.convert_tokens_to_ids("<bksp>")
    table = model.get_output_embeddings().weight
    others = torch.cat([table[:bksp], table[bksp + 1 :]])
    return float((table[bksp] - others.mean(0)).norm())


@pytest.mark.slow
def test_the_papers_recipe(base, tmp_path):
    """QLoRA with rollouts, streamed texts and gradient checkpointing; `value_estimator: mixed` and chi2-mixture."""
    data = write_data(tmp_path, [{"text": "abc = " + ALPHABET[index % 8 :]} for index in range(40)])
    command = ["train", "--config", str(RECIPES / "qlora_7b.yaml"), "--model_name_or_path", str(base)]
    command += ["--dataset_name", data, "--output_dir", str(tmp_path / "out"), "--rollout_steps", "1", *LESS, *SCHEDULE]
    assert main(command) == 0
    assert row_moved(tmp_path / "out") > 1e-5
    assert not (tmp_path / "out" / "model.safetensors").exists()
    logged = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert "objective/policy_penalty" in logged[2]
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_the_lora_recipe(base, tmp_path, capsys):
    data = write_data(tmp_path, [{"prompt": f"{a}{b}=", "completion": f"{b}{a}"} for a in "abcdef" for b in "ghijkl"])
    command = ["train", "--config", str(RECIPES / "lora.yaml"), "--model_name_or_path", str(base)]
    command += ["--dataset_name", data, "--output_dir", str(tmp_path / "out"), *LESS, *SCHEDULE, *SHORT]
    assert main(command) == 0
    assert "Completions" in capsys.readouterr().out  # log_completions
    assert row_moved(tmp_path / "out") > 1e-4
    assert main(["generate", "--model", str(tmp_path / "out"), "--prompt", "ag=", "--max_completion_length", "4"]) == 0


def test_a_dry_run_shows_and_writes_nothing(tmp_path, capsys):
    config = write_config(tmp_path, noise_rate=1.0)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([*config, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    for fact in (
        "gpt2",
        "<reset> (id",
        "deletes all",
        "sequencematch, lecam",
        "first loss",
        "total",
        "<reset>",
        "<eos>",
    ):
        assert fact in shown
    assert shown.count("<eos>") == 1 + 3  # the end's name, and three examples
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_dry_run_finds_what_is_wrong(tmp_path, capsys):
    assert main([*write_config(tmp_path, max_length=9), "--dry_run"]) == 2
    assert "example 0 has 10 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_logs_and_completions_reach_tensorboard(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    assert main(write_config(tmp_path, report_to="tensorboard", log_completions=True, max_steps=2)) == 0
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = events.Tags()
    assert {"train/objective/bc", "train/backspace/after_wrong", "train/backspace/rate"} <= set(tags["scalars"])
    assert any("completions" in tag for tag in tags["tensors"])


def test_the_model_card_tells_what_was_done(tmp_path):
    assert main(write_config(tmp_path)) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        "| divergence | lecam |",
        "| alpha | 0.05 |",
        "arXiv 2306.05426",
        "cundy2024sequencematch",
        "backspace",
    ):
        assert fact in card
    assert PROMPT not in card
