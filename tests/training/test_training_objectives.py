import numpy as np
import pytest
import torch
from training_runs import (
    RESET,
    ROLLOUTS,
    TASK,
    SpyEngine,
    example_rows,
    logs,
    new_model,
    new_trainer,
    no_dropout,
    questions,
    same_weights,
    weights,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from sequencematch import InputError
from sequencematch.data import Example
from sequencematch.mdp import replay
from sequencematch.models import action_space
from sequencematch.noise import Mistake
from sequencematch.rollouts import HFRolloutEngine, SamplingConfig
from sequencematch.training import SequenceMatchConfig, SequenceMatchTrainer

OBJECTIVES = {
    "mle": {"objective": "mle"},
    "bc": {"objective": "bc", "noise_source": "task", "noise_rate": 0.3},
    "chi2_mixture": ROLLOUTS,
    "lecam": {**ROLLOUTS, "divergence": "lecam", "rollout_steps": 0, "noise_source": "model", "noise_rate": 0.1},
    "iql_offline": {"objective": "iql_offline", "iql_lambda": 0.01, "noise_source": "uniform", "noise_rate": 0.1},
}

TEXTS = [{"text": TASK.alphabet[: 1 + index % 7]} for index in range(10)]


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def nll_by_hand(model, space, examples):
    """Negative log-likelihood of every expert action, from one ordinary forward pass for each example."""
    found = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        with torch.no_grad():
            logits = model.eval()(ids).logits[0].double()
        for done, action in enumerate(example.completion_ids):
            row = logits[len(example.prompt_ids) - 1 + done].clone()
            for deletion in space.deletions:
                if done < deletion.minimum_completion:
                    row[deletion.token_id] = -torch.inf
            found.append(float(-row.log_softmax(-1)[action]))
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_lowers_the_objective_and_the_held_out_likelihood_loss(name, tmp_path):
    trainer = new_trainer(tmp_path, max_steps=40, **OBJECTIVES[name])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in logs(trainer) if "loss" in entry]
    assert all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    assert trainer.evaluate()["eval_loss"] < before - 0.5


@pytest.mark.parametrize(("divergence", "alpha"), [("chi2", 0.05), ("kl", 0.05), ("js", 0.05), ("hellinger", 0.0)])
def test_every_divergence_trains(divergence, alpha, tmp_path):
    trainer = new_trainer(tmp_path, objective="sequencematch", divergence=divergence, alpha=alpha, max_steps=3)
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in logs(trainer))


def test_mle_loss_is_the_mean_over_the_actions_of_the_batch(tmp_path):
    rows = dataset(TEXTS)
    trainer = new_trainer(
        tmp_path, train=rows, objective="mle", per_device_train_batch_size=10, max_steps=1, model_options=no_dropout()
    )
    expected = np.mean(nll_by_hand(trainer.model, trainer.space, example_rows(trainer, 10)))
    trainer.train()
    assert logs(trainer)[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert logs(trainer)[0]["objective/bc"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [10, 4])
@pytest.mark.parametrize("rows", [TEXTS, None], ids=["text", "prompt and completion"])
def test_eval_loss_is_the_negative_log_likelihood_of_an_action(rows, batch_size, tmp_path):
    """Per action of the whole set, however its examples fall into batches, and without noise."""
    test = questions(test_size=10)["test"] if rows is None else dataset(rows)
    trainer = new_trainer(
        tmp_path,
        test=test,
        objective="bc",
        noise_source="uniform",
        noise_rate=1.0,
        per_device_eval_batch_size=batch_size,
    )
    trainer.train()
    examples = [Example.from_row(row) for row in trainer.eval_dataset]
    expected = np.mean(nll_by_hand(trainer.model, trainer.space, examples))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_evaluation_leaves_training_as_it_was(tmp_path):
    runs = []
    for strategy in ({"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 1}):
        # Without dropout, whose random numbers are torch's global ones: a stock data loader draws from them too.
        trainer = new_trainer(tmp_path, model_options=no_dropout(), **ROLLOUTS, **strategy)
        trainer.train()
        runs.append([entry for entry in logs(trainer) if "loss" in entry])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "rows",
    [TEXTS, [{"prompt": "ab", "completion": "cd"}, {"prompt": "c", "completion": "defg"}] * 5],
    ids=["text", "prompt and completion"],
)
@pytest.mark.parametrize("name", ["mle", "chi2_mixture"])
def test_both_kinds_of_data_set_train(rows, name, tmp_path):
    options = OBJECTIVES[name]
    trainer = new_trainer(tmp_path, train=dataset(rows), test=dataset(rows), max_steps=30, **options)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.5


def test_text_starts_from_the_beginning_of_text_token(tmp_path):
    trainer = new_trainer(tmp_path, train=dataset(TEXTS), objective="mle")
    tokenizer = trainer.processing_class
    example = example_rows(trainer, 3)[2]
    assert example.prompt_ids == (tokenizer.bos_token_id,)
    assert example.completion_ids == (*tokenizer(TASK.alphabet[:3])["input_ids"], tokenizer.eos_token_id)


def test_logged_names(tmp_path):
    always = {"loss", "grad_norm", "learning_rate", "epoch", "step", "objective/bc", "objective/clipped"}
    always |= {"objective/value_mean", "objective/value_max", "backspace/after_right"}
    planted = {"backspace/after_wrong"}
    matching = {
        f"objective/{name}"
        for name in (
            "expert_reward_mean",
            "initial_value",
            "expert_penalty",
            "domain_violations",
            "saturated",
            "bc_weight",
        )
    }
    policy = {"objective/policy_reward_mean", "objective/policy_penalty", "buffer/size", "buffer/staleness"}
    sampled = {f"backspace/{name}" for name in ("rate", "mean_run", "at_boundary")}
    sampled |= {f"completions/{name}" for name in ("mean_length", "mean_actions", "truncated")}
    trainer = new_trainer(tmp_path, **ROLLOUTS, bc_warmup_steps=1)
    trainer.train()
    found = [set(entry) for entry in logs(trainer)]
    assert found[0] == always | planted
    assert found[1] == always | planted | matching | policy | sampled
    assert found[2] == always | planted | matching | policy | sampled
    assert found[3] == always | planted | matching | policy
    trainer = new_trainer(tmp_path, **OBJECTIVES["lecam"])
    trainer.train()
    assert set(logs(trainer)[0]) == always | planted | matching
    trainer = new_trainer(tmp_path, **OBJECTIVES["iql_offline"])
    trainer.train()
    assert set(logs(trainer)[0]) == always | planted | {"objective/expert_reward_mean", "objective/expert_penalty"}


def test_logs_describe_the_rollouts(tmp_path):
    trainer = new_trainer(tmp_path, engine=SpyEngine, **ROLLOUTS)
    trainer.train()
    first = trainer.batches.engine.returned[:8]
    actions = np.concatenate([rollout.trajectory.actions for rollout in first])
    entry = logs(trainer)[0]
    assert entry["backspace/rate"] == pytest.approx(np.isin(actions, list(trainer.space.by_token)).mean())
    assert entry["completions/mean_length"] == pytest.approx(np.mean([len(rollout.completion) for rollout in first]))
    assert entry["completions/mean_actions"] == pytest.approx(len(actions) / 8)
    assert entry["completions/truncated"] == np.mean([rollout.finish_reason != "eos" for rollout in first])
    assert [entry["buffer/size"] for entry in logs(trainer)] == [8, 8, 16, 16]
    assert [entry["buffer/staleness"] for entry in logs(trainer)] == [0, 1, 1, 2]


def test_logs_are_means_over_the_logging_interval(tmp_path):
    found = []
    for steps in (1, 2):
        trainer = new_trainer(tmp_path, objective="bc", noise_source="uniform", noise_rate=0.3, logging_steps=steps)
        trainer.train()
        found.append([entry["objective/bc"] for entry in logs(trainer)])
    each, pairs = found
    assert pairs == pytest.approx([np.mean(each[:2]), np.mean(each[2:])])


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_reloads_in_transformers_and_here(tied, tmp_path):
    trainer = new_trainer(tmp_path / "run", model_options={"tie_word_embeddings": tied}, **ROLLOUTS)
    trainer.train()
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    prompt = tokenizer(questions()["test"][0]["prompt"])["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([prompt])).logits, trainer.model.eval()(torch.tensor([prompt])).logits)
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > len(prompt)
    assert model.config.deletion_actions == RESET
    assert action_space(model, tokenizer) == trainer.space
    config = SamplingConfig(max_completion_length=4, seed=0)
    first, second = (
        HFRolloutEngine(policy, space).rollout([prompt], config)[0]
        for policy, space in ((model, action_space(model, tokenizer)), (trainer.model, trainer.space))
    )
    assert first.trajectory == second.trajectory
    again = SequenceMatchTrainer(str(tmp_path / "run"), trainer.args, train_dataset=questions()["train"])
    assert again.space == trainer.space


def test_a_custom_noise_source_is_used(tmp_path):
    class WrongToken:
        """One wrong token before each completion's second token."""

        seen = 0

        def mistakes(self, examples, rng):
            self.seen += len(examples)
            return [[Mistake(1, (example.completion_ids[0],))] for example in examples]

    noise = WrongToken()
    trainer = new_trainer(tmp_path, objective="bc", noise=noise, noise_action_weight=0.25, max_steps=2)
    trainer.train()
    assert noise.seen == 16
    examples = example_rows(trainer, 2)
    (batch,), _ = trainer.batches.make([examples], step=0)
    reset = next(iter(trainer.space.by_token))
    expected = [
        action
        for example in examples
        for action in (example.completion_ids[0], example.completion_ids[0], reset, *example.completion_ids)
    ]
    assert batch.action.tolist() == expected
    assert batch.weight.tolist() == [1, 0.25, 1, 1, 1, 1] * 2


def test_custom_noise_needs_a_deletion_action(tmp_path):
    class NoMistakes:
        def mistakes(self, examples, rng):
            return [[] for _ in examples]

    with pytest.raises(InputError, match="no deletion action"):
        new_trainer(tmp_path, objective="bc", noise=NoMistakes(), model_options={"deletions": {}}, deletions={})


def test_a_model_without_deletions_trains(tmp_path):
    trainer = new_trainer(
        tmp_path, model_options={"deletions": {}}, **{**ROLLOUTS, "noise_source": "none", "deletions": {}}
    )
    trainer.train()
    assert not any(name.startswith("backspace/after") for entry in logs(trainer) for name in entry)
    assert all(entry["backspace/rate"] == 0 for entry in logs(trainer) if "backspace/rate" in entry)


def test_deletions_and_noise_come_by_themselves(tmp_path):
    """A model that knows nothing of deletions gets the paper's, and for maximum likelihood none."""
    trainer = new_trainer(tmp_path, model_options={"deletions": {}})
    assert trainer.args.noise_source == "uniform"
    assert trainer.model.config.deletion_actions == {"<bksp>": 1}
    assert [deletion.length for deletion in trainer.space.deletions] == [1]
    trainer = new_trainer(tmp_path, model_options={"deletions": {}}, objective="mle")
    assert (trainer.args.noise_source, trainer.space.deletions) == ("none", ())
    trainer = new_trainer(tmp_path, deletions='{"<bksp>": 1}')
    assert trainer.model.config.deletion_actions == {"<reset>": "all", "<bksp>": 1}


class Broken(TrainerCallback):
    """Spoils the weights before a step."""

    def __init__(self, step, factor):
        self.step, self.factor = step, factor

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(self.factor)


@pytest.mark.parametrize(("factor", "message"), [(float("nan"), "loss is nan"), (1e6, "largest .V. .*e.0")])
def test_training_that_diverges_stops_before_it_spoils_more(factor, message, tmp_path):
    trainer = new_trainer(tmp_path, objective="bc", callbacks=[Broken(2, factor)])
    with pytest.raises(InputError, match=f"training diverged at step 3.*{message}.*lower learning_rate"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_completions_are_sampled_for_reading(tmp_path, capsys):
    """Also where training itself samples nothing; and what is trained stays the same."""
    plain = new_trainer(tmp_path / "plain", objective="bc", noise_source="uniform", noise_rate=0.3)
    plain.train()
    shown = new_trainer(
        tmp_path / "shown",
        objective="bc",
        noise_source="uniform",
        noise_rate=0.3,
        log_completions=True,
        num_completions_to_print=2,
    )
    capsys.readouterr()
    shown.train()
    assert capsys.readouterr().out.count("Completions") == 4
    assert {"backspace/rate", "completions/mean_length"} <= set(logs(shown)[0])
    assert same_weights(weights(plain), weights(shown))


def test_a_custom_engine_is_used_for_rollouts_and_rollout_noise(tmp_path):
    options = {**ROLLOUTS, "noise_source": "rollout", "noise_rate": 1.0}
    trainer = new_trainer(tmp_path, engine=SpyEngine, **options)
    trainer.train()
    configs = [call["config"] for call in trainer.batches.engine.calls]
    for_noise = [config for config in configs if config.max_actions == config.max_completion_length + 1]
    assert (len(for_noise), len(configs)) == (4, 6)


def test_rollout_sampling_options_reach_the_engine(tmp_path):
    sampling = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "max_completion_length": 3, "max_actions": 5}
    trainer = new_trainer(tmp_path, engine=SpyEngine, **{**ROLLOUTS, **sampling}, max_steps=1)
    trainer.train()
    config = trainer.batches.engine.calls[0]["config"]
    assert {name: getattr(config, name) for name in sampling} == sampling


def test_policy_rollouts_are_legal_walks(tmp_path):
    trainer = new_trainer(tmp_path, engine=SpyEngine, **ROLLOUTS)
    trainer.train()
    for rollout in trainer.batches.engine.returned:
        assert replay(rollout.trajectory, trainer.space).completion == rollout.completion


def test_the_tokenizer_is_needed_beside_a_model_object(tmp_path):
    from sequencematch import InputError

    model, _ = new_model()
    with pytest.raises(InputError, match="processing_class"):
        SequenceMatchTrainer(model, SequenceMatchConfig(output_dir=str(tmp_path), objective="mle"))
