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

    def update(self, policy_version):
        pass

    def rollout(self, prompts, config, *, policy_version=0):
        return [Rollout(self.same, np.zeros(5), (7,), "eos") for _ in prompts]


def test_gradient_accumulation_changes_nothing_with_a_policy_half(tmp_path):
    options = {**ROLLOUTS, "noise_source": "none", "alpha": 0.5}
    compare_accumulation(tmp_path, engine=SameRollout, **options)
