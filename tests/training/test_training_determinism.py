import numpy as np
import pytest
import torch
from training_runs import ROLLOUTS, TASK, logs, new_trainer, no_dropout, questions, same_weights, weights

from sequencematch.mdp import Trajectory
from sequencematch.rollouts import Rollout

SGD = {"optim": "sgd", "learning_rate": 0.1, "objective": "sequencematch", "divergence": "lecam", "alpha": 0.05}


def test_the_seed_alone_decides(tmp_path):
    def run(seed):
        trainer = new_trainer(tmp_path, **ROLLOUTS, seed=seed)
        trainer.train()
        return weights(trainer), logs(trainer)

    first, second, other = run(3), run(3), run(4)
    assert same_weights(first[0], second[0])
    assert first[1] == second[1]
    assert not same_weights(first[0], other[0])
    assert first[1] != other[1]


@pytest.mark.parametrize("noise_source", ["uniform", "model", "rollout", "task"])
def test_resuming_equals_never_having_stopped(noise_source, tmp_path):
    """Noise, rollouts, buffer, dropout and an epoch's end in play; the checkpoint falls between two refreshes."""
    options = {
        **ROLLOUTS,
        "noise_source": noise_source,
        "train": questions(20)["train"],
        "max_steps": 7,
        "save_steps": 3,
        "rollout_steps": 2,
        "max_staleness": 3,
        "bc_warmup_steps": 1,
        "bc_anneal_steps": 3,
        "bc_final_weight": 0.2,
        "lr_scheduler_type": "linear",
    }
    whole = new_trainer(tmp_path / "whole", **{**options, "save_strategy": "steps"})
    whole.train()
    resumed = new_trainer(tmp_path / "resumed", **options)
    assert not same_weights(weights(resumed), weights(whole))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same_weights(weights(resumed), weights(whole))
    assert [entry["step"] for entry in logs(resumed)] == [1, 2, 3, 4, 5, 6, 7]
    assert logs(resumed) == logs(whole)
    kept, found = whole.batches.state_dict(), resumed.batches.state_dict()
    assert kept["rng"] == found["rng"]
    assert kept["buffer"]["policy_version"] == found["buffer"]["policy_version"]


def test_resuming_from_the_latest_checkpoint(tmp_path):
    trainer = new_trainer(tmp_path, **{**ROLLOUTS, "save_strategy": "steps", "save_steps": 2})
    trainer.train()
    again = new_trainer(tmp_path, **{**ROLLOUTS, "max_steps": 6})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    straight = new_trainer(tmp_path / "straight", **{**ROLLOUTS, "max_steps": 6})
    straight.train()
    assert same_weights(weights(again), weights(straight))


def compare_accumulation(tmp_path, **options):
    """Train on batches of eight, and on eight as two and four micro-batches: 20 rows, so that an epoch ends short."""
    runs = []
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        trainer = new_trainer(
            tmp_path,
            **{
                "train": questions(20)["train"],
                "model_options": no_dropout(),
                "max_steps": 5,
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": accumulation,
                **SGD,
                **options,
            },
        )
        start = weights(trainer)
        trainer.train()
        assert max(float((start[name] - end).abs().max()) for name, end in weights(trainer).items()) > 1e-2
        runs.append((weights(trainer), [entry["loss"] for entry in logs(trainer)]))
    for found, losses in runs[1:]:
        for name, expected in runs[0][0].items():
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=0)
        assert losses == pytest.approx(runs[0][1], abs=1e-5)


@pytest.mark.parametrize("noise_source", ["none", "task", "uniform"])
@pytest.mark.parametrize("objective", ["bc", "sequencematch", "iql_offline"])
def test_gradient_accumulation_changes_nothing(objective, noise_source, tmp_path):
    compare_accumulation(tmp_path, objective=objective, noise_source=noise_source, noise_rate=0.3)


def test_gradient_accumulation_changes_nothing_for_texts_of_many_lengths(tmp_path):
    from datasets import Dataset

    rows = [{"text": TASK.alphabet[: 1 + index % 7]} for index in range(20)]
    compare_accumulation(tmp_path, train=Dataset.from_list(rows), objective="mle")


class SameRollout:
    """Whatever the prompt, one and the same rollout: what is drawn from the buffer is then always the same."""

    def __init__(self, model, space):
        reset = next(iter(space.by_token))
        actions = np.array([5, 6, reset, 7, space.eos_token_id])
        self.same = Trajectory(np.array([4, 5]), actions, terminated=True, source="policy", policy_version=0)

    def rollout(self, prompts, config, *, policy_version=0):
        return [Rollout(self.same, np.zeros(5), (7,), "eos") for _ in prompts]


def test_gradient_accumulation_changes_nothing_with_a_policy_half(tmp_path):
    options = {**ROLLOUTS, "noise_source": "none", "alpha": 0.5}
    compare_accumulation(tmp_path, engine=SameRollout, **options)
