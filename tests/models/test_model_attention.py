"""Which attention runs, and FlexAttention: its blocks, its forward pass, and on an accelerator its gradients."""

import pytest
import torch
from models_reference import logits_alone, nodes, parameter_gradients, sample_walks
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from sequencematch.errors import InputError
from sequencematch.mdp import Trajectory
from sequencematch.models import attention, check_supported, layout_of, node_logits, prepare, prepare_model, tree_logits
from sequencematch.tree import ancestor_mask, collate_trajectories

FAMILIES = ["gpt2", "llama", "qwen3-mixed", "mistral", "gemma3"]
WIDE = {"hidden_size": 64, "head_dim": 16}
"""FlexAttention wants heads at least 16 wide."""


pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # from the compiler
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]


@pytest.fixture
def flex(monkeypatch, tiny_model):
    """`flex(family)`: a model that runs FlexAttention, on this machine's CPU if it has no accelerator.

    There it is not compiled, which takes half a minute for each kind of layer, unless told otherwise.
    """
    stance = torch.compiler.set_stance("default" if torch.cuda.is_available() else "force_eager")

    def make(family, compiled=False):
        if compiled:
            torch.compiler.set_stance("default")
        if not torch.cuda.is_available():
            monkeypatch.setattr(prepare, "choose", lambda model, attention: "flex")
        options = {"n_embd": 64, "n_head": 4} if family == "gpt2" else WIDE
        return tiny_model(family, **options).to("cuda" if torch.cuda.is_available() else "cpu")

    with stance:
        yield make


def test_the_device_decides(tiny_model):
    model = tiny_model()
    assert attention.choose(model, "auto") == "tiled"
    assert attention.choose(model, "dense") == "dense"
    with pytest.raises(InputError, match="tree_attention is one of auto, tiled, flex, dense, not 'fast'"):
        prepare_model(model, "fast")
    assert not hasattr(model, "tree_attention")


def test_flex_where_it_cannot_run(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device, or use tree_attention: tiled"):
        attention.choose(tiny_model(), "flex")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="no attention dropout; set it to 0 in the model's config, or use"):
        attention.choose(tiny_model(attention_dropout=0.1), "flex")
    assert attention.choose(tiny_model(), "flex") == "flex"


@pytest.mark.parametrize("window", [None, 3])
def test_flex_sees_what_the_ancestor_rule_says(space, flex, window):
    model = flex("llama")
    prepare_model(model)
    batch = collate_trajectories(sample_walks(space, count=40), space, layout_of(model))
    assert batch.tiles == ((1, 256),)
    mask = attention._flex_mask(batch, window)
    node = torch.arange(256)
    rule = mask.mask_mod(None, None, node[:, None], node[None, :])
    seen = ancestor_mask(batch.depth, batch.exit, window)
    assert torch.equal(rule, seen)
    blocks = seen.unflatten(0, (2, 128)).unflatten(2, (2, 128))
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(3).any(1))


def assert_equals_paths(model, batch):
    strings = dict(nodes(batch.to("cpu")))
    found = tree_logits(model, batch)[list(strings)].cpu()
    alone = torch.stack([logits_alone(model.cpu(), string) for string in strings.values()])
    model.to(batch.token.device)
    torch.testing.assert_close(found, alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_flex_equals_the_paths_alone(space, flex, family):
    """Forward only: FlexAttention has no backward pass on a CPU."""
    model = flex(family)
    walks = sample_walks(space, count=40)
    assert_equals_paths(model, collate_trajectories(walks, space, layout_of(model)).to(model.device))


@pytest.mark.slow
@torch.no_grad()
def test_flex_is_compiled_for_the_first_length_and_then_for_any(space, flex):
    model = flex("llama", compiled=True)
    compiled = counters["stats"]["unique_graphs"]
    for count in (8, 40, 80, 120):
        batch = collate_trajectories(sample_walks(space, count=count), space, layout_of(model)).to(model.device)
        assert_equals_paths(model, batch)
    assert len(batch.token) == 512
    assert counters["stats"]["unique_graphs"] - compiled == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_flex_gradients_equal_those_of_tiles(space, flex, family):
    model = flex(family)
    found = []
    for backend in ("flex", "tiled", "dense"):
        prepare_model(model, backend)
        batch = collate_trajectories(sample_walks(space, count=40), space, layout_of(model)).to("cuda")
        generator = torch.Generator().manual_seed(0)
        functional = torch.randn(len(batch.state), space.vocab_size, generator=generator).cuda()
        loss = (functional * node_logits(model, batch, batch.state)).sum() / len(functional)
        # What is compiled for a backward pass frees its inputs.
        found.append(parameter_gradients(model, loss, retain_graph=False))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=2e-4, rtol=1e-3)


def test_preparing_leaves_the_model_as_useful_as_before(tiny_model, space):
    """Its own forward, generation, a second preparation, copies and saved folders work as without it."""
    from copy import deepcopy

    model, plain = tiny_model("mistral"), tiny_model("mistral")
    prepare_model(model)
    prepare_model(model, "dense")
    check_supported(model)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [3, 2, 1, 7, 6, 5, 4]])
    padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    for options in ({}, {"attention_mask": padded}):
        found, expected = (m(input_ids=ids, **options).logits for m in (model, plain))
        torch.testing.assert_close(found, expected)
    generated = [m.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0) for m in (model, plain)]
    assert torch.equal(*generated)
    twin = deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    batch = collate_trajectories([Trajectory([1, 2], [3, 4, 5, 0])], space, layout_of(twin))
    alone = logits_alone(plain, [1, 2, 3])
    torch.testing.assert_close(tree_logits(twin, batch)[2], alone, atol=1e-5, rtol=1e-5)


def test_a_saved_model_knows_nothing_of_it(tiny_model, tmp_path):
    model = tiny_model("llama")
    prepare_model(model)
    model.save_pretrained(tmp_path)
    assert "state_tree" not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # from peft
def test_adapters_run_trees(tiny_model, space):
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    prepare_model(model)
    batch = collate_trajectories(sample_walks(space), space, layout_of(model))
    plain = node_logits(model, batch, batch.state)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    found = node_logits(adapted, batch, batch.state)
    assert (found - plain).abs().max() > 0.1
    prefix = torch.tensor([[int(batch.token[0])]])
    alone = adapted(input_ids=prefix).logits[0, -1]
    torch.testing.assert_close(tree_logits(adapted, batch)[0], alone, atol=1e-5, rtol=1e-5)
    sum(x.sum() for x in node_logits(adapted, batch, batch.state)).backward()
    trained = [name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_model_whose_trees_mislead_is_refused(tiny_model):
    """Whatever the reason: the small tree shows it before anything is trained."""
    model = tiny_model("llama")
    plain = model.model.forward
    model.model.forward = lambda **inputs: plain(**{**inputs, "position_ids": None})  # as if it ignored positions
    for _ in range(2):  # and again, not only the first time
        with pytest.raises(InputError, match=r"family 'llama' are not supported: a state tree differs .* \(tiled\)"):
            prepare_model(model)
    model.model.forward = plain
    prepare_model(model)
    assert model.proven_attention == {"tiled"}


def test_a_model_that_moves_to_another_attention_is_compared_again(tiny_model, space, monkeypatch):
    """As when it moves to an accelerator after it was prepared."""
    model = tiny_model("llama")
    prepare_model(model)
    batch = collate_trajectories(sample_walks(space), space, layout_of(model))
    monkeypatch.setattr(prepare, "choose", lambda model, attention: "dense")
    tree_logits(model, batch)
    assert model.proven_attention == {"tiled", "dense"}
    monkeypatch.setattr(prepare, "differs", lambda core, found, alone: 0.5)
    monkeypatch.setattr(prepare, "choose", lambda model, attention: "flex")
    with pytest.raises(InputError, match=r"differs from its paths run alone by 50.0% \(flex\)"):
        tree_logits(model, batch)


def test_a_head_of_zeros_is_no_reason_to_refuse(tiny_model):
    model = tiny_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    prepare_model(model)
