"""Training with rollouts on servers, over real HTTP, with the rules of vLLM behind it: whose weights sample what."""

import pytest
import torch
from peft import LoraConfig
from training_runs import (
    QUIET,
    ROLLOUTS,
    example_rows,
    logs,
    new_model,
    new_trainer,
    no_dropout,
    questions,
    same_weights,
    weights,
)
from vllm_rules import Server

from sequencematch import InputError
from sequencematch.training import SequenceMatchConfig, SequenceMatchTrainer

VOCAB = len(new_model()[1])
ON_POLICY = {**ROLLOUTS, "rollout_steps": 2, "model_options": no_dropout(), "per_device_train_batch_size": 4}


@pytest.fixture
def server():
    model, _ = new_model(**no_dropout())
    running = Server(model.eval(), vocab=VOCAB)
    yield running
    running.stop()


def on_server(server, folder, **options):
    given = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url}
    return new_trainer(folder, **{**ON_POLICY, **given, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_vllm": True, "vllm_mode": "server"}, "vllm_server_base_url goes with use_vllm"),
        ({"use_vllm": True, "vllm_server_base_url": "http://x"}, "vllm_server_base_url goes with use_vllm"),
        ({"vllm_server_base_url": "http://x"}, "vllm_server_base_url goes with use_vllm"),
        ({"vllm_mode": "cloud"}, "vllm_mode is one of colocate, server"),
        ({"async_rollouts": True}, "async_rollouts needs vLLM on servers"),
        (
            {
                "use_vllm": True,
                "vllm_mode": "server",
                "vllm_server_base_url": "http://x",
                "async_rollouts": True,
                "log_completions": True,
            },
            "async_rollouts has vLLM to itself",
        ),
    ],
)
def test_options_that_contradict_each_other(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        SequenceMatchConfig(output_dir=str(tmp_path), **options)


def test_rollouts_are_of_the_weights_of_their_step(server, tmp_path):
    trainer = on_server(server, tmp_path, max_steps=5, replay_buffer_size=1000)
    trainer.train()
    assert server.version == "4"
    held = trainer.batches.buffer.contents
    assert sorted({walk.policy_version for walk in held}) == [0, 2, 4]
    assert (tmp_path / "vllm" / "step-4").is_dir()
    assert len(list((tmp_path / "vllm").iterdir())) == 1


def test_the_servers_weights_are_the_policys_adapters_included(server, tmp_path):
    model, tokenizer = new_model(**no_dropout())
    options = {name: value for name, value in ON_POLICY.items() if name != "model_options"}
    args = SequenceMatchConfig(
        output_dir=str(tmp_path),
        **{**QUIET, **options},
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=server.url,
    )
    trainer = SequenceMatchTrainer(
        model,
        args,
        train_dataset=questions()["train"],
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=True),
    )
    trainer.batches.engine.update(7)
    examples = example_rows(trainer, 8)
    rollouts = trainer.batches.engine.rollout([example.prompt_ids for example in examples], trainer.args.sampling())
    batch = trainer.batches.collate([rollout.trajectory for rollout in rollouts])
    with torch.no_grad():
        steps = trainer.states(trainer.model.eval(), batch)
    sampled = torch.cat([torch.tensor(rollout.log_probs) for rollout in rollouts])
    torch.testing.assert_close((steps.q - steps.v).double(), sampled, rtol=1e-4, atol=1e-4)
    assert {rollout.trajectory.policy_version for rollout in rollouts} == {7}


def test_in_the_background_rollouts_arrive_one_refresh_later(server, tmp_path):
    trainer = on_server(server, tmp_path, max_steps=5, replay_buffer_size=1000, async_rollouts=True)
    trainer.train()
    versions = [walk.policy_version for walk in trainer.batches.buffer.contents]
    # At step 0 there is nothing to wait for; what was asked for then arrives at step 2, and that of step 2 at step 4.
    assert versions == sorted(versions)
    assert sorted(set(versions)) == [0, 2]
    assert versions.count(0) == 2 * versions.count(2)


@pytest.mark.parametrize("background", [False, True])
def test_a_run_is_reproducible_and_resumes_exactly(background, server, tmp_path):
    found = []
    for name in ("one", "other"):
        server.version = "default"
        options = {"max_steps": 6, "async_rollouts": background, "save_strategy": "steps", "save_steps": 3}
        trainer = on_server(server, tmp_path / name, **options)
        trainer.train()
        found.append((weights(trainer), [entry["loss"] for entry in logs(trainer)]))
    assert found[0][1] == found[1][1]
    resumed = on_server(server, tmp_path / "one", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-3"))
    assert [entry["loss"] for entry in logs(resumed)][-3:] == found[0][1][-3:]
    assert same_weights(weights(resumed), found[0][0])


def test_a_server_that_is_gone_ends_training_with_a_sentence(server, tmp_path):
    trainer = on_server(server, tmp_path, vllm_server_timeout=1.0)
    server.stop()
    with pytest.raises(InputError, match="no vLLM server answers"):
        trainer.train()


def test_vllm_in_this_process_needs_vllm(tmp_path):
    with pytest.raises(InputError, match=r"vLLM is not installed; pip install 'sequencematch\[vllm\]'"):
        new_trainer(tmp_path, **ON_POLICY, use_vllm=True)
