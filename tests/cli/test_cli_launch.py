"""`sequencematch train` in several processes, and the same under `accelerate launch`."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from cli_runs import TASK_OPTIONS, write_config, write_rows

from sequencematch.cli.launch import CONFIGS, ErrorFilter, _run, launch
from sequencematch.errors import InputError

SENTENCE = "example 8 has no completion"
OUTPUT = (
    b"Tokenizing: 50%\rTokenizing: 100%\nsequencematch: a warning\n  0%|"
    + f"sequencematch: error: {SENTENCE}\nsequencematch: error: {SENTENCE}\nTraceback ...\n".encode()
)


@pytest.fixture
def environment(monkeypatch):
    """The environment of processes that share two cores, and no run is recorded."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return dict(os.environ)


@pytest.mark.parametrize("size", [1, 2, 7, 22, 1000])
def test_one_error_is_kept_and_what_follows_it_is_not_shown(size):
    messages = ErrorFilter()
    shown = b"".join(messages.feed(OUTPUT[start : start + size]) for start in range(0, len(OUTPUT), size))
    assert shown + messages.finish() == b"Tokenizing: 50%\rTokenizing: 100%\nsequencematch: a warning\n  0%|\n"
    assert messages.sentence == SENTENCE


def test_what_is_no_error_is_shown_at_once():
    messages = ErrorFilter()
    assert messages.feed(b" 10%|#  \r 20%|## ") == b" 10%|#  \r 20%|## "
    assert messages.feed(b"\nsequencematch: err") == b"\n"
    assert messages.feed(b"and\n") == b"sequencematch: errand\n"
    assert messages.feed(b"sequence") == b""
    assert messages.finish() == b"sequence"
    assert messages.sentence is None


def test_without_its_flags_nothing_is_launched(tmp_path):
    assert launch(write_config(tmp_path)[1:]) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes", "0"], "num_processes must be a positive whole number, not '0'"),
        (["--num_processes=-2"], "not '-2'"),
        (["--num_processes", "two"], "not 'two'"),
        (["--num_processes"], "num_processes"),
        (["--accelerate_config", "fsdp3"], "give the path of a file, or one of fsdp2, multi_cpu, multi_gpu, zero3"),
        (["--num_processes", "2", "--lerning_rate", "1"], "did you mean 'learning_rate'"),
        (["--num_processes", "2", "--alpha", "-1"], "alpha must be at least 0"),
    ],
)
def test_bad_flags_start_nothing(flags, message, tmp_path):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        launch([*write_config(tmp_path)[1:], *flags])
    assert not (tmp_path / "out").exists()


def test_an_accelerate_config_that_is_none(tmp_path):
    (tmp_path / "mine.yaml").write_text("distributed_type: [MULTI_GPU\n")
    with pytest.raises(InputError, match=r"mine\.yaml' cannot be read"):
        launch([*write_config(tmp_path)[1:], "--accelerate_config", str(tmp_path / "mine.yaml")])


def test_a_launched_process_launches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch(write_config(tmp_path)[1:]) is None
    with pytest.raises(InputError, match="one of several processes already"):
        launch([*write_config(tmp_path)[1:], "--num_processes", "2"])


@pytest.mark.parametrize(
    ("name", "kind", "on_cpu"),
    [("fsdp2", "FSDP", False), ("multi_cpu", "MULTI_GPU", True), ("multi_gpu", "MULTI_GPU", False),
     ("zero3", "DEEPSPEED", False)],
)  # fmt: skip
def test_our_accelerate_configs(name, kind, on_cpu):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.use_cpu) == (kind, on_cpu)
    assert (config.num_machines, config.mixed_precision) == (1, "no")
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
        assert config.fsdp_config["fsdp_reshard_after_forward"] is True
    if name == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3
        assert config.deepspeed_config["zero3_save_16bit_model"] is True


def test_all_our_accelerate_configs_are_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"fsdp2", "multi_cpu", "multi_gpu", "zero3"}


@pytest.mark.parametrize(("code", "status"), [("sys.exit(0)", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_that_of_the_processes(code, status, capfd):
    script = f"import os, sys; print('out'); print('50%', end='\\r', file=sys.stderr, flush=True); {code}"
    assert _run([sys.executable, "-c", script], dict(os.environ)) == status
    assert capfd.readouterr().err == "50%\r"


def test_an_error_of_the_processes_is_raised_once(capfd):
    script = f"import sys; sys.stderr.buffer.write({OUTPUT!r}); sys.exit(1)"
    with pytest.raises(InputError, match=f"^{SENTENCE}$"):
        _run([sys.executable, "-c", script], dict(os.environ))
    assert capfd.readouterr().err.endswith("a warning\n  0%|\n")


@pytest.mark.slow
def test_two_processes_train_together(environment, tmp_path, capfd):
    assert launch([*write_config(tmp_path)[1:], "--num_processes", "2"]) == 0
    output = capfd.readouterr()
    assert output.out.count("train_runtime") == 1, "each process trained alone"
    assert "Traceback" not in output.err
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["epoch"] == 5 * 8 * 2 / 64
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_bad_input_of_two_processes_is_one_sentence(environment, tmp_path, capfd):
    row = {"prompt": "abac|ac=", "completion": "c"}
    rows = write_rows(tmp_path, [*[row] * 8, {**row, "completion": ""}])
    arguments = write_config(tmp_path, noise_source="none")
    (tmp_path / "run.yaml").write_text(
        (tmp_path / "run.yaml").read_text().replace("task: star", f"dataset_name: {rows}")
    )
    with pytest.raises(InputError):
        launch([*arguments[1:], "--num_processes", "2"])
    errors = capfd.readouterr().err
    assert "error:" not in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.fixture
def interruptible():
    """What a shell starts in the background ignores interrupts, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("name", "outcome"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit), ("SIGHUP", SystemExit)]
)
def test_a_signal_to_the_command_ends_the_process_below(name, outcome, interruptible):
    script = f"import os, signal, time; os.kill(os.getppid(), signal.{name}); time.sleep(60)"
    before = set(psutil.Process().children())
    with pytest.raises(outcome) as raised:
        _run([sys.executable, "-c", script], dict(os.environ))
    if outcome is SystemExit:
        assert raised.value.code == 128 + getattr(signal, name)
    assert set(psutil.Process().children()) <= before


@pytest.mark.slow
def test_an_interrupt_ends_all_processes(environment, tmp_path):
    script = """
    import signal, sys
    from sequencematch.cli.launch import launch

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        launch(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    """
    arguments = [*write_config(tmp_path, max_steps=1_000_000)[1:], "--num_processes", "2"]
    command = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert b"loss" in command.stdout.readline()
        processes = psutil.Process(command.pid).children(recursive=True)
        assert len(processes) >= 3, "accelerate and two processes"
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
    finally:
        command.stdout.close()
        command.terminate()  # which ends the processes below as well
        command.wait()


@pytest.mark.slow
def test_a_script_of_ones_own_under_accelerate_launch(environment, tmp_path):
    script = f"""
    import os
    from pathlib import Path
    from sequencematch import SequenceMatchConfig, SequenceMatchTrainer, add_backspace_token
    from sequencematch.tasks import build_tokenizer, get_task, split
    from transformers import AutoModelForCausalLM, GPT2Config

    task = get_task("star", **{TASK_OPTIONS!r})
    tokenizer = build_tokenizer(task.alphabet)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    add_backspace_token(model, tokenizer, {{"<reset>": "all"}})
    args = SequenceMatchConfig(
        output_dir=str(Path(__file__).parent / ("out" + os.environ["RANK"])), max_steps=4, report_to="none",
        per_device_train_batch_size=8, use_cpu=True, dataloader_pin_memory=False, save_strategy="no",
    )
    data = split(task, 64, 16, seed=0)["train"]
    trainer = SequenceMatchTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "multi_cpu.yaml")]
    done = subprocess.run([*command, str(tmp_path / "train.py")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out0" / "trainer_state.json").read_text())["epoch"] == 1.0
    assert (tmp_path / "out0" / "model.safetensors").is_file()
    assert not (tmp_path / "out1").exists(), "only the first process writes"
