"""Several processes train as one does: DDP and FSDP2, each with two processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_processes import GLOBAL_BATCH, RUNS, SAVED_STEP, deterministic_trainer, evaluation, losses
from training_runs import questions, weights
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow
MODES = ("ddp", "fsdp2")
SECONDS = 300
"""Long enough for any of the runs: processes that wait for each other would never end."""


@pytest.fixture(scope="module", params=MODES)
def together(request, tmp_path_factory):
    """What two processes found, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    script = Path(__file__).with_name("training_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), request.param, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, folder, torch.load(folder / "results.pt", weights_only=True)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_does(name, together, tmp_path):
    mode, _, found = together
    assert found["wrapped"] == {"ddp": "DistributedDataParallel", "fsdp2": "FSDPGPT2LMHeadModel"}[mode]
    alone = deterministic_trainer(name, tmp_path, 1)
    before = weights(alone)
    alone.train()
    after = weights(alone)
    assert max(float((after[key] - before[key]).abs().max()) for key in after) > 1e-2
    assert found[name]["losses"] == pytest.approx(losses(alone), abs=1e-5)
    assert_close(found[name]["weights"], {key: after[key] for key in found[name]["weights"]})


def test_weights_are_whole_inside_and_sharded_as_before_outside(together):
    mode, _, found = together
    gathered = found["gathered"]
    assert not gathered["sharded_inside"]
    assert gathered["sharded_before"] == gathered["sharded_after"] == (mode == "fsdp2")
    assert gathered["rollouts"] == 3
    assert len(gathered["inside"]) == 3
    for values in gathered["inside"]:
        torch.testing.assert_close(values, gathered["outside"])
    assert_close(gathered["gradients_after"], gathered["gradients_before"])
    assert max(float(gradient.abs().max()) for gradient in gathered["gradients_before"].values()) > 1e-2


def test_fsdp1_is_refused(together):
    assert "set fsdp_version: 2" in together[2]["gathered"]["refusal"]


def test_evaluation_counts_each_example_once(together, tmp_path):
    assert together[2]["eval_loss"] == pytest.approx(evaluation(tmp_path, 1, {}), abs=1e-5)


def test_each_rank_rolls_out_prompts_of_its_own_from_random_numbers_of_its_own(together):
    prompts, seeds = together[2]["rollouts"]["prompts"], together[2]["rollouts"]["seeds"]
    rows = questions(18)["train"]
    assert len(prompts) == 2
    for mine, theirs in zip(*prompts, strict=True):
        assert len(mine) == len(theirs) == GLOBAL_BATCH // 2
    first, second = ({prompt for call in calls for prompt in call} for calls in prompts)
    assert len(first | second) <= len(set(rows["prompt"]))
    # Two calls of four prompts on each rank, within an epoch; only the rows that fill up its end come again.
    assert len(set(prompts[0][0]) & set(prompts[1][0])) == 0
    assert len(set(prompts[0][0]) | set(prompts[1][0])) == GLOBAL_BATCH
    assert set(seeds[0]).isdisjoint(seeds[1])


def test_the_ranks_buffers_keep_pace(together):
    found = together[2]["rollouts"]
    assert found["size"][0] == found["size"][1] > 0
    assert found["buffered"][0] == found["buffered"][1]
    assert found["versions"] == [[0, 2, 4], [0, 2, 4]]
    assert len(found["losses"]) == 6
    assert all(torch.tensor(found["losses"]).isfinite())
    assert_close(*found["weights"])


def test_going_on_from_a_checkpoint_of_two_processes(together):
    found = together[2]["resumed"]
    assert found["again"] == pytest.approx(found["straight"], abs=1e-6)
    assert_close(found["again_weights"], found["straight_weights"])


def test_a_checkpoint_of_two_processes_is_a_model_for_one(together):
    _, folder, found = together
    checkpoint = folder / "saved" / f"checkpoint-{SAVED_STEP}"
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert_close(dict(loaded.named_parameters()), found["resumed"]["saved_weights"])


def test_one_process_goes_on_from_a_checkpoint_of_two(together, tmp_path):
    _, folder, found = together
    alone = deterministic_trainer("lecam", tmp_path, 1)
    alone.train(resume_from_checkpoint=str(folder / "saved" / f"checkpoint-{SAVED_STEP}"))
    assert losses(alone) == pytest.approx(found["resumed"]["straight"], abs=1e-5)
    assert_close(
        {key: value.detach() for key, value in alone.model.named_parameters()}, found["resumed"]["straight_weights"]
    )


def test_each_streamed_row_is_seen_once(together):
    first, second = together[2]["streamed"]
    assert len(first) == len(second) == 8
    assert sorted([*first, *second]) == list(range(16))
