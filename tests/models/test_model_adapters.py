"""Adapters on a model with deletion actions: what trains, what is saved, and that it reloads the same everywhere."""

import copy
import json
import warnings

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LoraConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sequencematch.errors import InputError
from sequencematch.mdp import Trajectory
from sequencematch.models import (
    action_space,
    add_adapters,
    add_backspace_token,
    check_trainable,
    evaluate_states,
    layout_of,
    load_model,
    load_tokenizer,
    prepare_model,
    save_adapters,
)
from sequencematch.objectives import bc_loss
from sequencematch.tasks import build_tokenizer
from sequencematch.tree import collate_trajectories

pytestmark = pytest.mark.filterwarnings(  # from peft
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:fan_in_fan_out is set to False:UserWarning"
)

ALPHABET = "abcdefghijkl =+"
SIZE = 19  # of the tokenizer before
DELETIONS = {"<bksp>": 1, "<reset>": "all"}
NEW = [SIZE, SIZE + 1]
MODELS = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama padded": {"vocab_size": 24},
    "gpt2": {},  # tied
    "phi": {},  # an output bias
}


@pytest.fixture(scope="module")
def make_base(tiny_model, tmp_path_factory):
    """`make_base(name)`: a model loaded from a folder, as it was saved without deletions."""
    folders = tmp_path_factory.mktemp("bases")

    def make(name="llama"):
        options = {"vocab_size": SIZE, "eos_token_id": 1, **MODELS[name]}
        folder = folders / name.replace(" ", "-")
        if not folder.exists():
            tiny_model(name.split()[0], **options).save_pretrained(folder)
            build_tokenizer(ALPHABET).save_pretrained(folder)
        return load_model(str(folder))

    return make


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **options})


def batch_of(space, model):
    walks = [([3, 4], [5, NEW[0], 6, 1]), ([3, 4], [7, 8, NEW[1], 5, 1]), ([9], [5, 5, NEW[0], 6, 1])]
    trajectories = [Trajectory(prompt, actions, terminated=True) for prompt, actions in walks]
    return collate_trajectories(trajectories, space, layout_of(model))


def train(model, space, steps=3):
    """A few optimizer steps of imitation; returns the losses.

    On trees deletions are never inputs, so the model also learns to write them as ordinary tokens.
    """
    batch, text = batch_of(space, model), torch.tensor([[3, NEW[0], 5, NEW[1], 6]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, _ = bc_loss(evaluate_states(model, batch, space))
        (loss + model(input_ids=text, labels=text, use_cache=False).loss).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits_of(model):
    tokens = torch.tensor([[3, 4, NEW[0], 5, NEW[1], 6]])
    return model.eval()(input_ids=tokens, use_cache=False).logits


def rows_of(model):
    """What the input and output embedding do to the deletion tokens: their rows, taken from their forwards."""
    core = getattr(model, "get_base_model", lambda: model)()
    inputs, outputs = core.get_input_embeddings(), core.get_output_embeddings()
    width = core.config.hidden_size
    with torch.no_grad():
        return inputs(torch.tensor(NEW)).clone(), outputs(torch.eye(width)).t()[NEW].clone()


def adapted(make_base, tokenizer, name, config=None):
    model = make_base(name)
    space = add_backspace_token(model, tokenizer, DELETIONS)
    return add_adapters(model, config or lora(), space), space


@pytest.fixture(scope="module", params=MODELS)
def trained(request, make_base, tmp_path_factory):
    """A trained model with adapters, its name, and the folder that it and its tokenizer are saved in."""
    tokenizer = build_tokenizer(ALPHABET)
    model, space = adapted(make_base, tokenizer, request.param)
    train(model, space)
    folder = tmp_path_factory.mktemp("adapters")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapters(model, folder)
    tokenizer.save_pretrained(folder)
    return model, request.param, folder


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_of_deletion_tokens_train(make_base, tokenizer, name):
    """Both of them move and nothing else of the embeddings, but for a head with a bias, which trains as a whole."""
    model, space = adapted(make_base, tokenizer, name)
    before, frozen = rows_of(model), {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = train(model, space, 6)
    assert losses[-1] < losses[0]
    for old, new in zip(before, rows_of(model), strict=True):
        assert (old - new).abs().amax(-1).min() > 1e-3
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], value) for n, value in frozen.items())
    trains = {n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n}
    assert len(trains) == (1 if name in ("llama tied", "gpt2") else 3 if name == "phi" else 2)
    check_trainable(model, space)


def test_trees_of_a_prepared_model_train_the_same(make_base, tokenizer):
    losses = []
    for prepare in (False, True):
        torch.manual_seed(0)
        model = make_base()
        space = add_backspace_token(model, tokenizer, DELETIONS)
        if prepare:
            prepare_model(model)
        losses.append(train(add_adapters(model, lora(), space), space))
    assert losses[0] == pytest.approx(losses[1])


def test_reloaded_by_us(trained):
    model, _, folder = trained
    again, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    torch.testing.assert_close(logits_of(again), logits_of(model))
    space = action_space(again, tokenizer)
    assert space == action_space(model, tokenizer)
    assert [(d.token_id, d.length) for d in space.deletions] == [(SIZE, 1), (SIZE + 1, "all")]
    assert again.config.deletion_token_ids == {"<bksp>": SIZE, "<reset>": SIZE + 1}
    check_trainable(again, space)
    losses = train(again, space)
    assert losses[-1] < losses[0]


def test_reloaded_by_peft_alone(trained):
    model, _, folder = trained
    again = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits_of(again), logits_of(model))
    space = action_space(again, AutoTokenizer.from_pretrained(folder))
    assert space == action_space(model, AutoTokenizer.from_pretrained(folder))


def test_merged_into_a_plain_model(trained, tmp_path):
    model, name, folder = trained
    expected = logits_of(model)
    merged = load_model(str(folder)).merge_and_unload()
    torch.testing.assert_close(logits_of(merged), expected, atol=2e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(plain), expected, atol=2e-4, rtol=1e-4)
    assert plain.config.deletion_actions == DELETIONS
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert tied == (name in ("llama tied", "gpt2"))
    written = plain.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert written.shape[1] > 3


def test_only_the_trained_rows_are_saved(trained):
    model, name, folder = trained
    saved = load_file(folder / "adapter_model.safetensors")
    width = model.config.hidden_size
    embeddings = {key: value for key, value in saved.items() if "lora" not in key}
    assert {tuple(value.shape) for value in embeddings.values()} - {(2, width)} == (
        {(SIZE + 2, width), (SIZE + 2,)} if name == "phi" else set()
    )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("name", ["llama", "llama tied", "phi"])
def test_saved_by_peft_alone(make_base, tokenizer, tmp_path, name):
    """`save_pretrained` as it is: larger, but the same."""
    model, space = adapted(make_base, tokenizer, name)
    train(model, space)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(load_model(str(tmp_path / "saved"))), logits_of(model))


EMBEDDING_CONFIGS = {
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole input": {"modules_to_save": ["embed_tokens"]},
    "lora": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "lora on the input": {"target_modules": ["q_proj", "embed_tokens"]},
    "regex": {"target_modules": ".*(q_proj|lm_head)"},
    "rows": {"trainable_token_indices": [4, SIZE]},
    "rows by name": {"trainable_token_indices": {"embed_tokens": [4], "lm_head": [5]}},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", EMBEDDING_CONFIGS.values(), ids=EMBEDDING_CONFIGS)
def test_configs_that_train_embeddings_themselves(make_base, tokenizer, tmp_path, options, tied):
    """The config is left as it is, both embeddings train, tied ones stay tied, and it reloads the same."""
    config = lora(**options)
    given = copy.deepcopy(config)
    model, space = adapted(make_base, tokenizer, "llama tied" if tied else "llama", config)
    assert config == given
    before = rows_of(model)
    train(model, space)
    after = rows_of(model)
    for old, new in zip(before, after, strict=True):
        assert (old - new).abs().amax(-1).min() > 1e-4
    if tied:
        torch.testing.assert_close(*after)
    save_adapters(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    expected = logits_of(model)
    torch.testing.assert_close(logits_of(load_model(str(tmp_path / "saved"))), expected)
    torch.testing.assert_close(logits_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved")), expected)


def test_rows_that_a_config_names_train_as_well(make_base, tokenizer):
    model, _ = adapted(make_base, tokenizer, "llama", lora(trainable_token_indices=[4, SIZE]))
    indices = model.peft_config["default"].trainable_token_indices
    assert indices == {"model.embed_tokens": [4, *NEW], "lm_head": NEW}


def test_other_adapters_train_whole_embeddings(make_base, tokenizer, tmp_path):
    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    model, space = adapted(make_base, tokenizer, "llama", config)
    train(model, space)
    save_adapters(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(load_model(str(tmp_path / "saved"))), logits_of(model))


def test_a_model_without_deletions(make_base, tokenizer, tmp_path):
    model = make_base()
    space = action_space(model, tokenizer)
    model = add_adapters(model, lora(), space)
    assert all("lora" in name for name, p in model.named_parameters() if p.requires_grad)
    save_adapters(model, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    assert action_space(again, load_tokenizer(str(tmp_path / "saved"))) == space
    check_trainable(again, space)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing(make_base, tokenizer):
    """Reentrant checkpoints need inputs with gradients even where no row of the input embedding trains."""
    model = make_base()
    space = action_space(model, tokenizer)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model = add_adapters(model, lora(), space, gradient_checkpointing=True)
    model.train()(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_adapters_on_a_base_that_has_the_deletions(make_base, tokenizer, tmp_path):
    """The usual second stage: frozen rows are the base's own, and nothing of the embeddings need be saved."""
    base = make_base()
    space = add_backspace_token(base, tokenizer, DELETIONS)
    base.save_pretrained(tmp_path / "first")
    model = get_peft_model(load_model(str(tmp_path / "first")), lora())
    with pytest.warns(UserWarning, match="rows of the output embedding are frozen"):
        check_trainable(model, space)
    save_adapters(model, tmp_path / "second")
    assert all("lora" in key for key in load_file(tmp_path / "second" / "adapter_model.safetensors"))
    tokenizer.save_pretrained(tmp_path / "second")
    torch.testing.assert_close(logits_of(load_model(str(tmp_path / "second"))), logits_of(model))


def test_frozen_rows_are_saved_with_adapters_that_a_user_made(make_base, tokenizer, tmp_path):
    model = make_base("llama tied")
    space = add_backspace_token(model, tokenizer, DELETIONS)
    model = get_peft_model(model, lora())
    with pytest.warns(UserWarning, match="are frozen"):
        check_trainable(model, space)
    save_adapters(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(
        logits_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved")), logits_of(model)
    )


@pytest.mark.parametrize("again", [False, True])
def test_adapters_twice(make_base, tokenizer, again):
    model, space = adapted(make_base, tokenizer, "llama")
    with pytest.raises(InputError, match="has adapters already"):
        add_adapters(model, lora(), space)
    merged = model.merge_and_unload()
    if again:
        assert train(add_adapters(merged, lora(), space), space)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("llama", {"r": 4}, "peft_config must be a config of peft, such as LoraConfig, not dict"),
        ("llama", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "PROMPT_TUNING adapters cannot"),
        ("llama tied", IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "IA3 adapters cannot train"),
        ("llama", LoraConfig(target_modules=["no_such_module"]), "peft cannot add these adapters: Target modules"),
        ("gpt2", LoraConfig(target_modules=["c_attn"], modules_to_save=["wte"]), "embedding would stay frozen"),
    ],
)
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")
def test_adapters_that_cannot_be(make_base, tokenizer, name, config, message):
    model = make_base(name)
    space = add_backspace_token(model, tokenizer)
    with pytest.raises(InputError, match=message):
        add_adapters(model, config, space)


def edit(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def one_sentence(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("base", ["/nowhere/at/all", "no/such", None])
def test_a_missing_base(make_base, tokenizer, tmp_path, base):
    model, _ = adapted(make_base, tokenizer, "llama")
    save_adapters(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    edit(tmp_path / "saved", "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(InputError, match=r"base of the adapters in .* is missing|do not say which model") as error:
        load_model(str(tmp_path / "saved"))
    assert one_sentence(error)


def test_adapters_of_another_base(make_base, tokenizer, tiny_model, tmp_path):
    model, _ = adapted(make_base, tokenizer, "llama", lora(target_modules=["q_proj", "up_proj"]))
    save_adapters(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    for name, options in {
        "wider": {"hidden_size": 32},
        "shallower": {"num_hidden_layers": 1},
        "deeper": {"num_hidden_layers": 3},
        "other": {},
    }.items():
        family = "gpt2" if name == "other" else "llama"
        tiny_model(family, vocab_size=SIZE, eos_token_id=1, **options).save_pretrained(tmp_path / name)
        edit(tmp_path / "saved", "adapter_config.json", base_model_name_or_path=str(tmp_path / name))
        with pytest.raises(InputError, match=f"do not fit '{tmp_path / name}'") as error:
            load_model(str(tmp_path / "saved"))
        assert one_sentence(error)


def test_adapters_without_their_tokenizer(make_base, tokenizer, tmp_path):
    model, _ = adapted(make_base, tokenizer, "llama")
    save_adapters(model, tmp_path / "saved")
    with pytest.raises(InputError, match=f"train token {NEW[1]}, but their base has {SIZE} tokens") as error:
        load_model(str(tmp_path / "saved"))
    assert one_sentence(error)
    assert len(load_tokenizer(str(tmp_path / "saved"))) == SIZE


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_adapters_without_their_weights(make_base, tokenizer, tmp_path, damage):
    model, _ = adapted(make_base, tokenizer, "llama")
    save_adapters(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved" / "adapter_model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="no adapters can be loaded from") as error:
        load_model(str(tmp_path / "saved"))
    assert one_sentence(error)
