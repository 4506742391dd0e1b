"""Deletion tokens: added once, starting as the mean of the others, saved with the model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sequencematch.errors import InputError
from sequencematch.mdp import ALL, ActionSpace, Deletion
from sequencematch.models import BACKSPACE, action_space, add_backspace_token
from sequencematch.models.backspace import recorded_deletions

SIZE = 19  # of the tokenizer before
EOS = 1
BOTH = {"<bksp>": 1, "<reset>": "all"}
MODELS = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "gpt2": {},  # tied by default
    "gemma3": {},  # tied, with scaled embeddings
    "phi": {},  # an output bias
    "llama padded": {"vocab_size": 24},
    "gpt2 padded": {"vocab_size": 24},
    "phi padded": {"vocab_size": 24},
}
TIED = {"llama tied", "gpt2", "gemma3", "gpt2 padded"}


@pytest.fixture
def model_of(tiny_model):
    def make(name="llama"):
        options = {"vocab_size": SIZE, "eos_token_id": EOS, **MODELS[name]}
        model = tiny_model(name.split()[0], **options)
        head = model.get_output_embeddings()
        if head.bias is not None:
            torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(1))
        return model

    return make


def tables(model):
    head = model.get_output_embeddings()
    found = {"input": model.get_input_embeddings().weight, "output": head.weight, "bias": head.bias}
    return {name: table.detach().clone() for name, table in found.items() if table is not None}


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("deletions", [BACKSPACE, BOTH])
@pytest.mark.parametrize("name", MODELS)
def test_new_rows_are_the_mean_of_the_others(model_of, tokenizer, name, deletions):
    model = model_of(name)
    before = tables(model)
    rest = {key: value for key, value in state_of(model).items() if SIZE not in value.shape}
    space = add_backspace_token(model, tokenizer, deletions)
    new = list(range(SIZE, SIZE + len(deletions)))
    size = max(MODELS[name].get("vocab_size", SIZE), SIZE + len(deletions))
    actions = zip(new, deletions.values(), strict=True)
    assert space == ActionSpace(size, EOS, tuple(Deletion(token, length) for token, length in actions))
    assert tokenizer.convert_tokens_to_ids(list(deletions)) == new
    assert len(tokenizer) == SIZE + len(deletions)

    after = tables(model)
    assert after.keys() == before.keys()
    for key, table in after.items():
        others = [row for row in range(size) if row not in new]
        assert len(table) == size, key
        assert torch.equal(table[others], before[key][others]), key
        torch.testing.assert_close(table[new], table[others].mean(0).expand_as(table[new]), msg=key)
        assert table[others].std() > 0.1
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (name in TIED)
    assert model.config.vocab_size == size
    if "padded" not in name:
        assert all(torch.equal(model.state_dict()[key], value) for key, value in rest.items())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_old_logits_stay_and_a_new_token_is_an_average_one(model_of, tokenizer, name):
    model = model_of(name)
    tokens = torch.tensor([[2, 5, 6, 7, 9]])
    before = model(input_ids=tokens).logits
    add_backspace_token(model, tokenizer)
    after = model(input_ids=tokens).logits
    others = [row for row in range(after.shape[-1]) if row != SIZE]
    torch.testing.assert_close(after[..., others], before[..., others])
    torch.testing.assert_close(after[..., SIZE], after[..., others].mean(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama padded"])
def test_adding_twice_changes_nothing(model_of, tokenizer, name):
    model = model_of(name)
    space = add_backspace_token(model, tokenizer)
    with torch.no_grad():  # training moves the row away from the mean
        model.get_input_embeddings().weight[SIZE] += 1
    before = state_of(model)
    assert add_backspace_token(model, tokenizer) == space == action_space(model, tokenizer)
    assert same_state(state_of(model), before)
    assert len(tokenizer) == SIZE + 1


def test_adding_another_later_keeps_the_first(model_of, tokenizer):
    model = model_of()
    add_backspace_token(model, tokenizer)
    before = tables(model)
    space = add_backspace_token(model, tokenizer, {"<reset>": ALL})
    assert space == ActionSpace(SIZE + 2, EOS, (Deletion(SIZE, 1), Deletion(SIZE + 1, ALL)))
    for key, table in tables(model).items():
        assert torch.equal(table[: SIZE + 1], before[key]), key
        torch.testing.assert_close(table[SIZE + 1], before[key].mean(0), msg=key)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi padded"])
@torch.no_grad()
def test_saved_and_reloaded(model_of, tokenizer, tmp_path, name):
    model = model_of(name)
    space = add_backspace_token(model, tokenizer, {"<bksp>": 1, "<three>": 3, "<reset>": "all"})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model_again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer_again = AutoTokenizer.from_pretrained(tmp_path)
    assert action_space(model_again, tokenizer_again) == space
    assert [deletion.length for deletion in space.deletions] == [1, 3, ALL]
    tokens = torch.tensor([[2, SIZE, SIZE + 1, SIZE + 2, 5]])
    torch.testing.assert_close(
        model_again.eval()(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=0, rtol=0
    )
    before = state_of(model_again)
    assert add_backspace_token(model_again, tokenizer_again, {"<bksp>": 1}) == space
    assert same_state(state_of(model_again), before)


def test_decoding_drops_deletion_tokens(model_of, tokenizer):
    add_backspace_token(model_of(), tokenizer, BOTH)
    ids = tokenizer("ab<bksp>c<reset>d")["input_ids"]
    assert ids == [
        *tokenizer("ab")["input_ids"],
        SIZE,
        *tokenizer("c")["input_ids"],
        SIZE + 1,
        tokenizer("d")["input_ids"][0],
    ]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "abcd"
    assert tokenizer.decode(ids) == "ab<bksp>c<reset>d"


def test_special_tokens_that_were_there_stay_special(model_of, tokenizer):
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    model = model_of("llama padded")
    space = add_backspace_token(model, tokenizer)
    assert [deletion.token_id for deletion in space.deletions] == [SIZE + 1]
    assert {"<tool>", "<bksp>"} <= set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer("a<tool>b<bksp>")["input_ids"], skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("length", [2, "all"])
def test_a_token_has_one_meaning(model_of, tokenizer, length):
    model = model_of()
    space = add_backspace_token(model, tokenizer)
    with pytest.raises(InputError, match="'<bksp>' already deletes 1 tokens"):
        add_backspace_token(model, tokenizer, {"<bksp>": length})
    assert action_space(model, tokenizer) == space


@pytest.mark.parametrize("deletions", [{"<bksp>": 0}, {"<ok>": 1, "<bad>": "some"}, {"<eos>": 1}])
def test_refusals_change_nothing(model_of, tokenizer, deletions):
    model = model_of()
    before = state_of(model)
    with pytest.raises(InputError):
        add_backspace_token(model, tokenizer, deletions)
    assert same_state(state_of(model), before)
    assert len(tokenizer) == SIZE
    assert action_space(model, tokenizer) == ActionSpace(SIZE, EOS)


def test_eos_is_needed(model_of, tokenizer):
    model = model_of()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no eos token"):
        add_backspace_token(model, tokenizer)
    with pytest.raises(InputError, match="no eos token"):
        action_space(model, tokenizer)
    assert len(tokenizer) == SIZE


def test_a_model_without_deletions(model_of, tokenizer):
    assert action_space(model_of(), tokenizer) == ActionSpace(SIZE, EOS)


def test_a_foreign_tokenizer(model_of, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    model = model_of()
    add_backspace_token(model, tokenizer)
    with pytest.raises(InputError, match="lacks the model's deletion token '<bksp>'"):
        action_space(model, AutoTokenizer.from_pretrained(tmp_path))


RESERVED = "<|reserved_special_token_0|>"


def test_a_reserved_token_can_delete(model_of, tokenizer, tmp_path):
    """Nothing grows: the tokenizer has the token and the model its rows."""
    tokenizer.add_special_tokens({"extra_special_tokens": [RESERVED]})
    model = model_of("llama padded")
    before = tables(model)
    parameters = list(model.parameters())
    space = add_backspace_token(model, tokenizer, {RESERVED: 1})
    assert space == ActionSpace(24, EOS, (Deletion(SIZE, 1),))
    assert len(tokenizer) == SIZE + 1
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    for key, table in tables(model).items():
        others = [row for row in range(24) if row != SIZE]
        assert torch.equal(table[others], before[key][others]), key
        torch.testing.assert_close(table[SIZE], before[key][others].mean(0), msg=key)
    tokenizer.save_pretrained(tmp_path)
    assert action_space(model, AutoTokenizer.from_pretrained(tmp_path)) == space


@pytest.mark.parametrize("text", ["a", " "])
def test_ordinary_text_cannot_delete(model_of, tokenizer, text):
    with pytest.raises(InputError, match="a piece of ordinary text"):
        add_backspace_token(model_of(), tokenizer, {text: 1})
    assert recorded_deletions(tokenizer) == {}
    equals = tokenizer.convert_tokens_to_ids("=")
    assert add_backspace_token(model_of(), tokenizer, {"=": 1}).deletions == (Deletion(equals, 1),)


def test_the_tokenizer_has_the_actions_on_record(model_of, tokenizer, tmp_path):
    """Where the model's config says nothing, as with adapters, it decides; where it does, the config."""
    model = model_of()
    space = add_backspace_token(model, tokenizer, BOTH)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert recorded_deletions(again) == BOTH
    del model.config.deletion_actions
    assert action_space(model, again) == space
    model.config.deletion_actions = {"<bksp>": 1}
    assert action_space(model, again).deletions == (Deletion(SIZE, 1),)
    with pytest.raises(InputError, match="'<reset>' already deletes all tokens"):
        add_backspace_token(model, again, {"<reset>": 2})


def test_a_tokenizer_that_is_larger_than_the_model(model_of, tokenizer):
    tokenizer.add_tokens(["<one>", "<two>"])
    with pytest.raises(InputError, match=f"token ids up to {SIZE + 1}, but the model only {SIZE} embeddings"):
        action_space(model_of(), tokenizer)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # from peft
@pytest.mark.parametrize(
    ("name", "targets", "problem"),
    [
        ("llama padded", ["q_proj"], None),
        ("llama", ["q_proj"], "the embeddings would have to grow"),
        ("llama padded", ["q_proj", "lm_head"], "the embeddings are among what the adapters train"),
    ],
)
def test_a_model_with_adapters(model_of, tokenizer, name, targets, problem):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of(name), LoraConfig(target_modules=targets))
    if problem:
        with pytest.raises(InputError, match=f"{problem}; add them before the adapters"):
            add_backspace_token(model, tokenizer)
        assert len(tokenizer) == SIZE
        assert not hasattr(model.config, "deletion_actions")
    else:
        assert add_backspace_token(model, tokenizer) == ActionSpace(24, EOS, (Deletion(SIZE, 1),))
        assert model.get_base_model().config.deletion_actions == {"<bksp>": 1}
        model.get_input_embeddings().weight.data[SIZE] = 7.0
        assert add_backspace_token(model, tokenizer) == action_space(model, tokenizer)
        assert (model.get_input_embeddings().weight[SIZE] == 7.0).all()
