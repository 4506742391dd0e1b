"""What a trainer takes, as users of TRL give it: ids, adapters, conversations, streams, several evaluation sets."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from training_runs import QUIET, ROLLOUTS, logs, new_model, no_dropout, questions, same_weights, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from sequencematch import (
    InputError,
    SequenceMatchConfig,
    SequenceMatchTrainer,
    get_divergence,
    load_model,
    load_tokenizer,
)

CHATML = (
    "{% for message in messages %}<pad>{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<pad>{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A saved model that knows nothing of deletions, its head apart from its embedding."""
    model, tokenizer = new_model(deletions={}, tie_word_embeddings=False, **no_dropout())
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def config(tmp_path, **options):
    return SequenceMatchConfig(output_dir=str(tmp_path / "out"), **{**QUIET, **options})


def test_two_lines_are_enough(folder, tmp_path):
    """A folder, a data set and adapters: deletions, noise and objective come by themselves."""
    from peft import LoraConfig

    trainer = SequenceMatchTrainer(
        folder,
        config(tmp_path),
        train_dataset=questions()["train"],
        peft_config=LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True),
    )
    assert [deletion.length for deletion in trainer.space.deletions] == [1]
    assert trainer.divergence == get_divergence("lecam")
    assert (trainer.args.noise_source, trainer.args.noise_rate) == ("uniform", 0.001)
    trainer.train()
    trainer.save_model()
    saved = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"} <= saved
    assert "model.safetensors" not in saved
    model, tokenizer = load_model(trainer.args.output_dir), load_tokenizer(trainer.args.output_dir)
    ids = torch.tensor([tokenizer("abac|ac=")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trainer.model.eval()(ids).logits)
    assert model.config.deletion_actions == {"<bksp>": 1}
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 100_000


def test_a_model_by_its_folder(folder, tmp_path):
    options = {"model_init_kwargs": {"dtype": "bfloat16"}, "objective": "mle"}
    trainer = SequenceMatchTrainer(folder, config(tmp_path, **options), train_dataset=questions()["train"])
    assert trainer.model.dtype == torch.bfloat16
    assert len(trainer.processing_class) == trainer.space.vocab_size
    options["model_init_kwargs"] = '{"dtype": "float32"}'
    assert SequenceMatchTrainer(folder, config(tmp_path, **options)).model.dtype == torch.float32


@pytest.mark.parametrize(
    "given", [{"options": {"model_init_kwargs": {"dtype": "bfloat16"}}}, {"quantization_config": 1}]
)
def test_a_model_that_is_there_takes_no_arguments_of_loading(given, tmp_path):
    model, tokenizer = new_model()
    options = given.pop("options", {})
    with pytest.raises(InputError, match="are for a model that is given as an id or folder"):
        SequenceMatchTrainer(model, config(tmp_path, **options), processing_class=tokenizer, **given)


def test_a_model_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match="give the model's tokenizer as processing_class"):
        SequenceMatchTrainer(new_model()[0], config(tmp_path))


def test_adapters_and_peft_config_at_once(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    with pytest.raises(InputError, match=r"adapters already|deletion tokens cannot be added"):
        SequenceMatchTrainer(
            model, config(tmp_path), processing_class=AutoTokenizer.from_pretrained(folder), peft_config=lora
        )
    assert not (tmp_path / "out").exists()


def conversations():
    turns = [("user", "ab"), ("assistant", "c"), ("user", "d"), ("assistant", "ef")]
    messages = [{"role": role, "content": content} for role, content in turns]
    return [{"messages": messages[:2]}, {"messages": messages}] * 8


@pytest.mark.parametrize("streamed", [False, True])
def test_conversations_train_the_assistants_turns(streamed, tmp_path):
    model, tokenizer = new_model(**no_dropout())
    (tmp_path / "chat.jinja").write_text(CHATML)
    rows = Dataset.from_list(conversations())
    options = {"chat_template_path": str(tmp_path / "chat.jinja"), "objective": "bc", "noise_source": "none"}
    trainer = SequenceMatchTrainer(
        model,
        config(tmp_path, **options),
        train_dataset=rows.to_iterable_dataset() if streamed else rows,
        processing_class=tokenizer,
    )
    found = list(trainer.train_dataset)
    assert len(found) == 3 * 8
    decoded = {(tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["completion_ids"])) for row in found}
    first = ("<pad>ab<eos><pad>", "c<eos>")
    assert decoded == {first, ("<pad>ab<eos><pad>c<eos><pad>d<eos><pad>", "ef<eos>")}
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_stream_gives_what_the_data_set_gives(tmp_path):
    """The same losses, as the rows come in the same order."""
    curves = []
    for streamed in (False, True):
        model, tokenizer = new_model(**no_dropout())
        rows = Dataset.from_list(questions(32)["train"].to_list())
        options = {"objective": "bc", "noise_source": "none", "train_sampling_strategy": "sequential"}
        trainer = SequenceMatchTrainer(
            model,
            config(tmp_path, **options),
            train_dataset=rows.to_iterable_dataset() if streamed else rows,
            processing_class=tokenizer,
        )
        trainer.train()
        curves.append([entry["loss"] for entry in logs(trainer)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


def test_a_stream_needs_an_end(tmp_path):
    model, tokenizer = new_model()
    rows = IterableDataset.from_generator(lambda: iter(questions()["train"].to_list()))
    with pytest.raises(InputError, match="a streamed data set has no known length; set max_steps"):
        SequenceMatchTrainer(model, config(tmp_path, max_steps=-1), train_dataset=rows, processing_class=tokenizer)
    assert not (tmp_path / "out").exists()


def test_several_evaluation_sets_by_name(tmp_path):
    model, tokenizer = new_model()
    test = questions()["test"]
    trainer = SequenceMatchTrainer(
        model,
        config(tmp_path),
        train_dataset=questions()["train"],
        eval_dataset={"first": test.select(range(8)), "second": test.select(range(8, 16))},
        processing_class=tokenizer,
    )
    metrics = trainer.evaluate()
    assert {"eval_first_loss", "eval_second_loss"} <= set(metrics)
    alone = trainer.evaluate(trainer.eval_dataset["second"])["eval_loss"]
    assert metrics["eval_second_loss"] == pytest.approx(alone)
    assert metrics["eval_first_loss"] != metrics["eval_second_loss"]


def test_another_end_of_turn(tmp_path):
    """`eos_token` reaches the actions, the data, and the model that is saved."""
    model, tokenizer = new_model()
    trainer = SequenceMatchTrainer(
        model,
        config(tmp_path, eos_token="|", max_steps=1),
        train_dataset=Dataset.from_list([{"text": "abc"}, {"text": "ab|"}] * 4),
        processing_class=tokenizer,
    )
    end = tokenizer.convert_tokens_to_ids("|")
    assert trainer.space.eos_token_id == end
    assert all(row["completion_ids"][-1] == end for row in trainer.train_dataset)
    trainer.train()
    assert trainer.model.generation_config.eos_token_id in (end, [end], [end, 1], [1, end])
    assert trainer.model.config.eos_token_id == end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eos_token": "<nowhere>"}, "eos_token '<nowhere>' is not in the tokenizer's vocabulary"),
        ({"chat_template_path": "nowhere.jinja"}, "the chat template 'nowhere.jinja' cannot be read"),
        ({"deletions": {"a": 1}}, "'a' is a piece of ordinary text"),
    ],
)
def test_options_that_cannot_be_met(options, message, tmp_path):
    model, tokenizer = new_model()
    with pytest.raises(InputError, match=message):
        SequenceMatchTrainer(model, config(tmp_path, **options), processing_class=tokenizer)


def test_imitating_the_user_is_refused(tmp_path):
    with pytest.raises(InputError, match="assistant_only_loss: false would imitate the user"):
        config(tmp_path, assistant_only_loss=False)


def test_a_prompt_that_is_imitated_too(tmp_path):
    model, tokenizer = new_model()
    rows = Dataset.from_list([{"prompt": "ab", "completion": "c"}])
    args = config(tmp_path, completion_only_loss=False, objective="mle", packing=False)
    trainer = SequenceMatchTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    assert tokenizer.decode(trainer.train_dataset[0]["completion_ids"]) == "abc<eos>"


def test_adapters_resume_exactly(folder, tmp_path):
    """Their weights, the rows of the deletion token, rollouts and random numbers; whole embeddings are not saved."""
    from peft import LoraConfig

    def new(place, **options):
        options = {**QUIET, **ROLLOUTS, "save_strategy": "steps", "save_steps": 2, **options}
        lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
        args = SequenceMatchConfig(output_dir=str(tmp_path / place), **options)
        return SequenceMatchTrainer(folder, args, train_dataset=questions()["train"], peft_config=lora)

    straight = new("straight")
    straight.train()
    again = new("again")
    again.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert same_weights(weights(again), weights(straight))
    assert logs(again)[2:] == logs(straight)[2:]
    assert (tmp_path / "straight" / "checkpoint-2" / "adapter_model.safetensors").stat().st_size < 20_000


def test_a_pushed_model_brings_its_tokenizer_and_card(folder, tmp_path, monkeypatch):
    """Everything up to the upload itself."""
    from huggingface_hub import HfApi

    sent = []

    def upload(self, *, folder_path, repo_id, **kwargs):
        sent.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    args = config(tmp_path, objective="bc", hub_model_id="someone/model")
    trainer = SequenceMatchTrainer(folder, args, train_dataset=questions()["train"])
    trainer.train()
    trainer.push_to_hub(dataset_name="someone/data")
    ((repository, files),) = sent
    assert repository == "someone/model"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("someone/model")' in card
    assert "someone/data" in card
