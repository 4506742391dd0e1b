"""Rewards off the expert's way in the trainer: `off_expert_weight` and `counterfactual_weight`."""

from dataclasses import replace

import pytest
import torch
from training_runs import RESET, example_rows, logs, new_trainer, no_dropout

from sequencematch import InputError
from sequencematch.mdp import departures, replay
from sequencematch.models import steps_of, tree_logits
from sequencematch.models.departures import evaluate_departures
from sequencematch.objectives import bc_loss, get_divergence, off_expert_loss, sequencematch_loss
from sequencematch.training import SequenceMatchConfig

OWN = {
    "objective": "sequencematch",
    "divergence": "lecam",
    "alpha": 1.0,
    "gamma": 0.8,
    "noise_source": "none",
    "bc_final_weight": 0.5,
    "off_expert_weight": 0.2,
    "counterfactual_weight": 3.0,
    "rollout_steps": 1,
    "replay_buffer_size": 16,
    "model_options": {"deletions": RESET, **no_dropout()},
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_steps": 0}, "off_expert_weight needs rollouts; set rollout_steps"),
        ({"divergence": "chi2"}, "chi2 at alpha 1 sets no least reward"),
        ({"divergence": "chi2_mixture"}, "chi2_mixture at alpha 1 sets no least reward"),
        ({"alpha": 0.0}, "an alpha above 0"),
        ({"objective": "bc"}, "off_expert_weight is a part of sequencematch"),
        ({"off_expert_weight": 0.0}, "counterfactual_weight counts within off_expert_weight"),
        ({"off_expert_weight": -1.0}, "off_expert_weight must be at least 0"),
        ({"counterfactual_weight": -1.0}, "counterfactual_weight must be at least 0"),
    ],
)
def test_options_that_contradict_each_other(options, message, tmp_path):
    given = {name: value for name, value in OWN.items() if name != "model_options"}
    with pytest.raises(InputError, match=message):
        SequenceMatchConfig(output_dir=str(tmp_path), **{**given, **options})


def test_the_buffer_knows_where_rollouts_left_the_way(tmp_path):
    trainer = new_trainer(tmp_path, num_generations=2, **{**OWN, "replay_buffer_size": 128})
    examples = example_rows(trainer, 64)
    trees, _ = trainer.batches.make([examples], 0)
    way = {example.prompt_ids: example.completion_ids for example in examples}
    held = trainer.batches.buffer.sample(128)
    for walk in held:
        expected = departures(walk, way[tuple(walk.prompt_ids.tolist())], trainer.space)
        assert walk.action_weights.tolist() == expected.tolist()
    assert 0 < sum(walk.action_weights.sum() for walk in held) < sum(map(len, held))
    assert trees[0].is_policy.sum() == 64


def test_the_loss_is_its_parts_by_plain_logits(tmp_path):
    trainer = new_trainer(tmp_path, **OWN)
    model, space = trainer.model.eval(), trainer.space
    (batch,), _ = trainer.batches.make([example_rows(trainer, 8)], 0)
    loss = trainer.compute_loss(model, {"batch": batch})
    steps = steps_of(tree_logits(model, batch), batch, space)
    expert, policy = steps.subset(~batch.is_policy), steps.subset(batch.is_policy)
    count = expert.weight.sum()
    divergence = get_divergence("lecam")
    _, deletions, astray = evaluate_departures(model, batch, space)
    bc, _ = bc_loss(expert, denominator=count)
    matching, _ = sequencematch_loss(expert, divergence=divergence, alpha=1.0, gamma=0.8, denominator=count)
    off, _ = off_expert_loss(
        policy,
        deletions,
        astray[batch.is_policy],
        divergence=divergence,
        alpha=1.0,
        gamma=0.8,
        counterfactual_weight=3.0,
        scale=8 / count,
    )
    torch.testing.assert_close(loss, 0.5 * bc + 0.5 * (matching + 0.2 * off))


def test_gradient_accumulation_changes_nothing(tmp_path):
    """The rollouts of a step are those of all its prompts; the buffer is as large as a step, so all of them count."""
    found = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        trainer = new_trainer(
            tmp_path,
            **{**OWN, "replay_buffer_size": 8},
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
        )
        fixed = trainer.batches.demonstrations
        trainer.batches.demonstrations = lambda examples, fixed=fixed: fixed(sorted(examples, key=str))
        trainer.train()
        found.append(logs(trainer)[0])
    assert found[0]["objective/bc"] == pytest.approx(found[1]["objective/bc"], abs=1e-5)
    assert found[0]["objective/off_expert_share"] > 0


def deletes_what_is_wrong(trainer):
    """The mean of pi(reset | s) in the states that rollouts of the clean model lead to off the expert's way."""
    examples = example_rows(trainer, 64)
    rollouts = trainer.batches.engine.rollout(
        [example.prompt_ids for example in examples], replace(trainer.args.sampling(), allow_backspace=False, seed=5)
    )
    walks = [
        replace(
            rollout.trajectory, action_weights=departures(rollout.trajectory, example.completion_ids, trainer.space)
        )
        for rollout, example in zip(rollouts, examples, strict=True)
    ]
    assert all(max(replay(walk, trainer.space).lengths) <= 5 for walk in walks)
    _, deletions, _ = evaluate_departures(trainer.model.eval(), trainer.batches.collate(walks), trainer.space)
    return float((deletions.q - deletions.v).detach().exp().mean())


def test_the_policy_learns_to_delete_without_a_demonstration(tmp_path):
    found = {}
    for weight in (0.0, 3.0):
        trainer = new_trainer(
            tmp_path, **{**OWN, "counterfactual_weight": weight}, max_steps=60, per_device_train_batch_size=16
        )
        trainer.train()
        found[weight] = deletes_what_is_wrong(trainer)
    assert found[3.0] > 2 * found[0.0], found
