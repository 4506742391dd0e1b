import pytest
from training_runs import ROLLOUTS, SpyEngine, example_rows, new_trainer

from sequencematch.training import SequenceMatchConfig


def spied(folder, **options):
    """A finished run and, for each step that drew any, the steps at which its policy trajectories were sampled."""
    trainer = new_trainer(folder, engine=SpyEngine, **{**ROLLOUTS, "max_steps": 8, **options})
    drawn: dict[int, list[int]] = {}
    sample = trainer.batches.buffer.sample

    def spy(n):
        found = sample(n)
        versions = drawn.setdefault(trainer.state.global_step, [])
        versions += [trajectory.policy_version for trajectory in found]
        return found

    trainer.batches.buffer.sample = spy
    trainer.train()
    return trainer, trainer.batches.engine.calls, drawn


def config(tmp_path, **options):
    return SequenceMatchConfig(output_dir=str(tmp_path), **{"divergence": "lecam", **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0] * 8),
        ({"bc_final_weight": 0.3}, [0.3] * 8),
        ({"bc_warmup_steps": 3}, [1, 1, 1, 0, 0, 0, 0, 0]),
        ({"bc_anneal_steps": 4}, [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]),
        (
            {"bc_warmup_steps": 2, "bc_anneal_steps": 4, "bc_final_weight": 0.2},
            [1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2],
        ),
        ({"bc_warmup_steps": 2, "bc_anneal_steps": 4, "bc_final_weight": 1.0}, [1] * 8),
        ({"objective": "bc"}, [1] * 8),
        ({"objective": "mle"}, [1] * 8),
        ({"objective": "iql_offline"}, [1] * 8),
    ],
)
def test_weight_of_behavioural_cloning(options, expected, tmp_path):
    args = config(tmp_path, **options)
    assert [args.bc_weight(step) for step in range(8)] == pytest.approx(expected)


def test_the_weight_is_that_of_the_optimizer_step(tmp_path):
    trainer, _, _ = spied(tmp_path, bc_warmup_steps=2, bc_anneal_steps=4, gradient_accumulation_steps=2)
    found = [entry.get("objective/bc_weight", 1.0) for entry in trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx([trainer.args.bc_weight(step) for step in range(8)])


def test_rollouts_are_sampled_every_so_many_steps(tmp_path):
    trainer, calls, drawn = spied(tmp_path, rollout_steps=3)
    assert [call["version"] for call in calls] == [0, 3, 6]
    assert trainer.batches.engine.updates == [0, 3, 6]
    assert list(drawn) == list(range(8))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"bc_warmup_steps": 4}, [4, 6]),
        ({"bc_warmup_steps": 3}, [3, 4, 6]),  # the first as soon as the policy is wanted, then in step
        ({"bc_warmup_steps": 3, "bc_anneal_steps": 10}, [4, 6]),  # at step 3 the weight of BC is still 1
        ({"bc_warmup_steps": 100}, []),
        ({"bc_final_weight": 1.0}, []),
    ],
)
def test_no_rollouts_while_behavioural_cloning_is_alone(schedule, expected, tmp_path):
    _, calls, drawn = spied(tmp_path, **schedule)
    assert [call["version"] for call in calls] == expected
    assert list(drawn) == (list(range(expected[0], 8)) if expected else [])


@pytest.mark.parametrize("objective", ["mle", "bc", "iql_offline"])
def test_no_rollouts_for_objectives_without_a_policy_half(objective, tmp_path):
    _, calls, drawn = spied(tmp_path, objective=objective, noise_source="none")
    assert calls == []
    assert drawn == {}


def test_no_rollouts_where_none_are_asked_for(tmp_path):
    _, calls, drawn = spied(tmp_path, divergence="lecam", rollout_steps=0)
    assert calls == []
    assert drawn == {}


def test_lecam_takes_rollouts_for_the_mixed_estimator_alone(tmp_path):
    assert not spied(tmp_path / "expert", divergence="lecam")[1]
    trainer, calls, _ = spied(tmp_path / "mixed", divergence="lecam", value_estimator="mixed")
    assert len(calls) == 4
    assert "objective/policy_reward_mean" in trainer.state.log_history[0]


def test_prompts_are_those_of_the_step_with_so_many_rollouts_each(tmp_path):
    trainer, calls, _ = spied(tmp_path, num_generations=3, gradient_accumulation_steps=2, max_steps=1)
    prompts = calls[0]["prompts"]
    assert len(prompts) == 8 * 2 * 3
    assert all(prompts[i] == prompts[i + 1] == prompts[i + 2] for i in range(0, len(prompts), 3))
    known = {tuple(row["prompt_ids"]) for row in trainer.train_dataset}
    assert set(prompts) <= known
    assert len(set(prompts)) == 16


def test_every_refresh_has_noise_of_its_own(tmp_path):
    _, calls, _ = spied(tmp_path)
    assert len({call["config"].seed for call in calls}) == len(calls)


def test_the_buffer_keeps_to_its_capacity(tmp_path):
    trainer, _, _ = spied(tmp_path, replay_buffer_size=10)
    sizes = [entry["buffer/size"] for entry in trainer.state.log_history if "buffer/size" in entry]
    assert sizes == [8, 8, 10, 10, 10, 10, 10, 10]


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("rollout_steps", [1, 2, 3])
def test_no_trajectory_staler_than_allowed_is_learned_from(rollout_steps, max_staleness, tmp_path):
    _, _, drawn = spied(tmp_path, rollout_steps=rollout_steps, max_staleness=max_staleness)
    assert list(drawn) == list(range(8))
    oldest = {step: step - min(versions) for step, versions in drawn.items()}
    assert max(oldest.values()) <= max_staleness, oldest


def test_without_a_limit_old_trajectories_stay(tmp_path):
    trainer, _, _ = spied(tmp_path, replay_buffer_size=100)
    assert sorted(set(trainer.batches.buffer.state_dict()["policy_version"])) == [0, 2, 4, 6]


def test_as_many_policy_trajectories_as_the_expert_has_in_each_micro_batch(tmp_path):
    trainer = new_trainer(tmp_path, **ROLLOUTS)
    examples = example_rows(trainer, 10)
    batches, _ = trainer.batches.make([examples[:3], examples[3:10]], step=0)
    assert [int(batch.is_policy.sum()) for batch in batches] == [3, 7]
    assert [int((~batch.is_policy).sum()) for batch in batches] == [3, 7]


def test_or_a_share_of_them_with_whole_prompts_together(tmp_path):
    trainer = new_trainer(tmp_path, **{**ROLLOUTS, "policy_batch_share": 0.4, "num_generations": 2})
    examples = example_rows(trainer, 10)
    batches, _ = trainer.batches.make([examples[:3], examples[3:10]], step=0)
    assert [int(batch.is_policy.sum()) for batch in batches] == [2, 3]
    sample = trainer.batches.buffer.sample(6)
    assert len({tuple(trajectory.prompt_ids.tolist()) for trajectory in sample}) <= 3


def test_few_rollouts_serve_a_larger_batch(tmp_path):
    trainer = new_trainer(tmp_path, **{**ROLLOUTS, "replay_buffer_size": 2})
    (batch,), metrics = trainer.batches.make([example_rows(trainer, 9)], step=0)
    assert metrics["buffer/size"] == 2
    assert int(batch.is_policy.sum()) == 9


def test_rollouts_are_sampled_under_mixed_precision(tmp_path):
    """The weights are float32 and the layers compute in bfloat16, which no check of the engine may take for a fault."""
    trainer = new_trainer(tmp_path, **ROLLOUTS, bf16=True, use_cpu=True)
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps
    assert len(trainer.batches.buffer) > 0
