import json
import shutil
import subprocess
import sys

import pytest
from cli_runs import PROMPT, error_of, write_config, write_rows

from sequencematch.cli.main import main

ROWS = [{"prompt": PROMPT, "completion": "c"}] * 8


def test_no_command_prints_the_usage(capsys):
    assert main([]) == 2
    assert "usage: sequencematch" in capsys.readouterr().out


def test_unknown_command(capsys):
    assert "no command 'trian'" in error_of(capsys, ["trian"])


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"lerning_rate": 1}, [], "did you mean 'learning_rate'"),
        ({}, ["--lerning_rate", "1"], "did you mean 'learning_rate'"),
        ({"max_steps": "many"}, [], "max_steps"),
        ({"alpha": -1.0}, [], "alpha must be at least 0"),
        ({"divergence": "chi2_mixture"}, [], "needs rollouts"),
        ({"task": "chess"}, [], "no task 'chess'"),
        ({"task_options": {"degree": 1}}, [], "degree"),
        ({}, ["--task_options", "{degree: 2}"], "task_options must be a mapping"),
        ({"deletions": {}}, [], "no deletion action"),
        ({"deletions": {"<two>": 2}}, [], "no deletion action leads from 1 completion tokens back to 0"),
        ({"from_scratch": {"model_type": "gpt9"}}, [], "from_scratch makes no model"),
        ({"from_scratch": None, "model_name_or_path": "./nowhere"}, [], "no folder './nowhere'"),
        ({"task": None, "dataset_name": "./nowhere.jsonl"}, [], "nowhere.jsonl"),
        ({"temperature": -1.0, "rollout_steps": 1}, [], "temperature"),
        ({"rollout_steps": 1, "divergence": "chi2_mixture", "max_completion_length": 100}, [], "max_completion_length"),
        ({"max_length": 9}, [], "example 0 has 10 tokens"),
        ({"max_length": 8}, [], "the prompt of example 0 has 8 tokens"),
    ],
)
def test_bad_options_of_train(changes, flags, message, capsys, tmp_path):
    assert message in error_of(capsys, [*write_config(tmp_path, **changes), *flags])
    assert not (tmp_path / "out").exists()


def test_missing_configuration_file(capsys, tmp_path):
    assert "none.yaml" in error_of(capsys, ["train", "--config", str(tmp_path / "none.yaml")])


def test_configuration_file_that_is_no_yaml(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("a: [1\nb: }")
    assert "run.yaml" in error_of(capsys, ["train", "--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": PROMPT, "answer": "c"}],
            "['answer', 'question']; it needs 'text', or 'prompt' and 'completion'",
        ),
        ([{"prompt": PROMPT}], "'completion'"),
        ([*ROWS, {"prompt": PROMPT, "completion": ""}], "example 8 has no completion"),
        ([*ROWS, {"prompt": PROMPT, "completion": None}], "example 8 has no completion"),
        ([*ROWS, {"prompt": "", "completion": "c"}], "example 8 has no prompt"),
        ([*ROWS, {"prompt": PROMPT, "completion": "c" * 40}], "example 8 has 49 tokens"),
        ([*ROWS, {"prompt": PROMPT, "completion": "<eos>c"}], "example 8 contains the text of the eos token"),
        ([*ROWS, {"prompt": PROMPT * 4, "completion": "c"}], "the prompt of example 8 has 32 tokens"),
        (
            [{"prompt": "a", "completion": [{"role": "assistant", "content": "c"}]}],
            "example 0 has a string as its prompt",
        ),
        ([{"messages": [{"role": "user", "content": "a"}]}], "no chat template; set chat_template_path"),
        ([{"messages": [], "prompt": "a", "completion": "c"}], "the data set has mixed formats"),
        ([*ROWS, {"prompt": PROMPT, "completion": "d<reset>c"}], "example 8 contains the text of the eos token"),
    ],
)
def test_bad_data(rows, message, trained, capsys, tmp_path):
    changes = {"task": None, "noise_source": "none", "from_scratch": None, "model_name_or_path": str(trained)}
    arguments = write_config(tmp_path, **changes, dataset_name=write_rows(tmp_path, rows))
    assert message in error_of(capsys, arguments)
    assert not (tmp_path / "out").exists()


CHAT = "{% for m in messages %}<pad>{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<pad>{% endif %}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": [{"role": "user", "content": "a"}]}], "example 0 has no assistant turn"),
        ([{"messages": [{"role": "user"}]}], "message 0 in the messages of example 0 is not of the form"),
        (
            [{"prompt": "a", "completion": [{"role": "assistant", "content": "c"}]}],
            "example 0 has a string as its prompt",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}],
            "message 1 of example 0 is an empty assistant turn",
        ),
    ],
)
def test_bad_conversations(rows, message, trained, capsys, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHAT)
    changes = {"task": None, "noise_source": "none", "from_scratch": None, "model_name_or_path": str(trained)}
    changes["chat_template_path"] = str(tmp_path / "chat.jinja")
    arguments = write_config(tmp_path, **changes, dataset_name=write_rows(tmp_path, rows))
    assert message in error_of(capsys, arguments)
    assert not (tmp_path / "out").exists()


def test_adapters_of_another_base(trained, capsys, tmp_path):
    """The base that an adapter folder names may have been exchanged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    get_peft_model(AutoModelForCausalLM.from_pretrained(trained), lora).save_pretrained(tmp_path / "adapters")
    other = save_model(tmp_path / "other", deletions={"<reset>": "all"}, n_embd=8)["model_name_or_path"]
    told = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": other}))
    changes = {"from_scratch": None, "model_name_or_path": str(tmp_path / "adapters")}
    message = error_of(capsys, write_config(tmp_path, **changes))
    assert f"the adapters in '{tmp_path / 'adapters'}' do not fit '{other}'" in message
    assert not (tmp_path / "out").exists()


def no_rows_on_disk(folder):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_dict({"text": []})).save_to_disk(folder / "rows")
    return folder / "rows"


def header_only(folder):
    (folder / "rows.csv").write_text("prompt,completion\n")
    return folder / "rows.csv"


def empty_file(folder):
    (folder / "rows.jsonl").write_text("")
    return folder / "rows.jsonl"


@pytest.mark.parametrize("make", [no_rows_on_disk, header_only, empty_file], ids=lambda make: make.__name__)
def test_empty_data_set(make, trained, capsys, tmp_path):
    changes = {"task": None, "noise_source": "none", "from_scratch": None, "model_name_or_path": str(trained)}
    arguments = write_config(tmp_path, **changes, dataset_name=str(make(tmp_path)))
    assert "is empty" in error_of(capsys, arguments)
    assert not (tmp_path / "out").exists()


def save_model(folder, deletions=None, eos=True, extra_tokens=0, config=None, n_embd=16):
    """An untrained model and a tokenizer that need not fit each other."""
    import transformers

    from sequencematch.models import add_backspace_token
    from sequencematch.tasks import build_tokenizer, get_task

    tokenizer = build_tokenizer(get_task("star", nodes=8, degree=2).alphabet)
    if config is None:
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=n_embd,
            n_layer=1,
            n_head=2,
            n_positions=32,
            eos_token_id=1,
            bos_token_id=2,
        )
    model = transformers.AutoModelForCausalLM.from_config(config)
    if deletions:
        add_backspace_token(model, tokenizer, deletions)
    if extra_tokens:
        tokenizer.add_tokens([chr(ord("A") + index) for index in range(extra_tokens)])
    if not eos:
        tokenizer.eos_token = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"from_scratch": None, "model_name_or_path": str(folder)}


def test_tokenizer_with_ids_that_the_model_lacks(capsys, tmp_path):
    changes = save_model(tmp_path / "model", extra_tokens=3) | {"deletions": {}, "noise_source": "none"}
    rows = [*ROWS, {"prompt": PROMPT, "completion": "A"}]
    arguments = write_config(tmp_path, **changes, task=None, dataset_name=write_rows(tmp_path, rows))
    assert "the tokenizer has token ids up to 16, but the model only 14 embeddings" in error_of(capsys, arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("deletions", [{}, {"<reset>": "all"}])
def test_tokenizer_without_an_end(deletions, capsys, tmp_path):
    changes = save_model(tmp_path / "model", eos=False) | {"deletions": deletions, "noise_source": "none"}
    assert "no eos token" in error_of(capsys, write_config(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_noise_without_a_deletion_in_a_saved_model(capsys, tmp_path):
    changes = save_model(tmp_path / "model") | {"deletions": {}}
    assert "no deletion action" in error_of(capsys, write_config(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_a_deletion_that_means_another(trained, capsys, tmp_path):
    changes = {"from_scratch": None, "model_name_or_path": str(trained), "deletions": {"<reset>": 3}}
    assert "already deletes all tokens" in error_of(capsys, write_config(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "generate", "evaluate"])
def test_unsupported_architecture(command, capsys, tmp_path):
    from transformers import MambaConfig

    config = MambaConfig(
        vocab_size=14, hidden_size=8, state_size=2, num_hidden_layers=1, eos_token_id=1, bos_token_id=2, pad_token_id=0
    )
    changes = save_model(tmp_path / "model", config=config)
    capsys.readouterr()
    arguments = {
        "train": write_config(tmp_path, **changes),
        "generate": ["generate", "--model", str(tmp_path / "model"), "--prompt", PROMPT],
        "evaluate": ["evaluate", "--model", str(tmp_path / "model"), "--task", "star"],
    }[command]
    assert "'mamba' are not supported: its layers carry recurrent state" in error_of(capsys, arguments)
    assert not (tmp_path / "out").exists()


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def garble_state(folder):
    (folder / "trainer_state.json").write_text("{not json")


def drop_buffer(folder):
    (folder / "sequencematch_state_0.pt").unlink()


def garble_buffer(folder):
    (folder / "sequencematch_state_0.pt").write_bytes(b"garbage")


def drop_state(folder):
    (folder / "trainer_state.json").unlink()


def drop_weights(folder):
    (folder / "model.safetensors").unlink()


def garble_optimizer(folder):
    (folder / "optimizer.pt").write_bytes(b"garbage")


def other_sizes(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({name: value[..., :1].contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def drop_all(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "damage",
    [
        truncate_weights,
        cut_header,
        drop_weights,
        other_sizes,
        garble_state,
        drop_state,
        drop_buffer,
        garble_buffer,
        garble_optimizer,
        drop_all,
    ],
    ids=lambda damage: damage.__name__,
)
def test_corrupt_checkpoint(damage, trained, capsys, tmp_path):
    checkpoint = tmp_path / "checkpoint-20"
    shutil.copytree(trained / "checkpoint-20", checkpoint)
    damage(checkpoint)
    arguments = [*write_config(tmp_path), "--resume_from_checkpoint", str(checkpoint)]
    message = error_of(capsys, arguments)
    assert str(checkpoint) in message
    assert "no checkpoint folder" in message if damage is drop_all else "corrupt or incomplete" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize("damage", [truncate_weights, drop_weights, drop_all], ids=lambda damage: damage.__name__)
def test_a_model_that_cannot_be_loaded(damage, command, trained, capsys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    damage(model)
    own = {"generate": ["--prompt", PROMPT], "evaluate": ["--task", "star"]}[command]
    assert str(model) in error_of(capsys, [command, "--model", str(model), *own])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--prompt"),
        (["--prompt", PROMPT, "--temperature", "hot"], "--temperature"),
        (["--prompt", PROMPT, "--temperature", "-1"], "temperature"),
        (["--prompt", PROMPT, "--top_p", "0"], "top_p"),
        (["--prompt", PROMPT, "--max_completion_length", "0"], "max_completion_length"),
        (["--prompt", PROMPT, "--max_completion_length", "100"], "do not fit the model's 32 positions"),
        (["--prompt", PROMPT, "--num_generations", "-1", "--max_completion_length", "8"], "num_generations"),
        (["--prompt", PROMPT, "--retry", "never"], "--retry"),
        (["--prompt", PROMPT, "--unknown"], "--unknown"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["live", "json"])
def test_bad_options_of_generate(flags, message, form, trained, capsys):
    capsys.readouterr()
    assert main(["generate", "--model", str(trained), *flags, *form]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sequencematch: error: ")]
    assert message in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --task or --dataset_name"),
        (["--task", "star", "--dataset_name", "x.jsonl"], "either --task or --dataset_name"),
        (["--task", "chess"], "no task 'chess'"),
        (["--task", "star", "--task_options", "{degree: 2}"], "--task_options must be"),
        (["--task", "star", "--task_options", "[2]"], "task_options"),
        (["--task", "star", "--task_options", '{"degrees": 2}'], "no option 'degrees'"),
        (["--task", "star", "--test_size", "0"], "the data set is empty"),
        (["--task", "star", "--modes", "thoughtful"], "--modes"),
        (["--task", "star", "--metrics", "beauty"], "--metrics"),
        (["--task", "star", "--decoding", "hot"], "--decoding must be"),
        (["--task", "star", "--decoding", '{"hot": {"heat": 2}}'], "no option 'heat'"),
        (["--dataset_name", "./nowhere.jsonl"], "nowhere.jsonl"),
        (
            ["--task", "star", "--engine", "vllm", "--decoding", '{"wide": {"method": "beam"}}'],
            "vLLM has no search for the decoding method 'beam'",
        ),
    ],
)
def test_bad_options_of_evaluate(flags, message, trained, capsys):
    assert message in error_of(capsys, ["evaluate", "--model", str(trained), *flags])


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"text": "abc"}], [], "no prompts but the columns text"),
        ([{"text": "abc"}], ["--prompt_tokens", "9"], "leaves nothing after a prompt of 9"),
        (ROWS, ["--dataset_split", "validation"], "the splits train"),
        ([{"prompt": "", "completion": "c"}], [], "prompt"),
        ([{"prompt": None, "completion": "c"}], [], "prompt"),
    ],
)
def test_bad_data_of_evaluate(rows, flags, message, trained, capsys, tmp_path):
    arguments = ["evaluate", "--model", str(trained), "--dataset_name", write_rows(tmp_path, rows)]
    assert message in error_of(capsys, [*arguments, "--max_completion_length", "4", *flags])


def test_an_output_file_that_cannot_be_written_is_found_out_first(trained, capsys, tmp_path):
    output = tmp_path / "no folder" / "scores.json"
    flags = ["--task", "star", "--task_options", '{"degree": 2, "length": 1, "nodes": 8}', "--test_size", "4"]
    flags += ["--max_completion_length", "4", "--output", str(output)]
    assert str(output) in error_of(capsys, ["evaluate", "--model", str(trained), *flags])


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    import sequencematch.cli.demo

    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(sequencematch.cli.demo, "run", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "sequencematch: interrupted\n"


def test_one_sentence_from_a_process_of_its_own(tmp_path):
    """Nothing but the sentence: no warning of a library, no progress bar, no traceback."""
    (tmp_path / "run.yaml").write_text(json.dumps({"lerning_rate": 1, "divergence": "lecam"}))
    command = [sys.executable, "-m", "sequencematch.cli.main", "train", "--config", "run.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "sequencematch: error: there is no option 'lerning_rate'; did you mean 'learning_rate'?\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
