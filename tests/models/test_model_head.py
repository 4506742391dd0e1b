"""Q and V without the logits, against their definition: values and every gradient."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cohere2Config, Gemma2Config, GraniteConfig

from sequencematch.mdp import ALL, ActionSpace, Deletion
from sequencematch.models import LogitTransform, head_values, head_values_reference
from sequencematch.models import head as head_module
from sequencematch.models import tiled_head as tiled_module

VOCAB, WIDTH = 37, 8
SPACE = ActionSpace(VOCAB, 0, (Deletion(1, 1), Deletion(VOCAB - 2, 3), Deletion(VOCAB - 1, ALL)))
TRANSFORMS = {
    "plain": LogitTransform(),
    "scaled": LogitTransform(0.25),
    "capped": LogitTransform(1.0, 2.0),
    "both": LogitTransform(3.0, 1.5),
}


@pytest.fixture
def small_tiles(monkeypatch):
    """`small_tiles(states, entries)`: limits that cut even a small head into tiles."""

    def shrink(states, entries):
        monkeypatch.setattr(tiled_module, "TILE_STATES", states)
        for module in (tiled_module, head_module):
            monkeypatch.setattr(module, "tile_entries", lambda device: entries)

    return shrink


def make(states=13, steps=29, bias=True, dtype=torch.float64, seed=0):
    """A head, hidden states and their completion lengths, and steps: several from some states, none from others."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(WIDTH, VOCAB, bias=bias).to(dtype)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    hidden = torch.randn(states, WIDTH, generator=generator).to(dtype).requires_grad_()
    lengths = torch.randint(0, 4, (states,), generator=generator)
    row = torch.randint(0, max(states, 1), (steps,), generator=generator)
    action = torch.randint(2, VOCAB - 2, (steps,), generator=generator)
    return head, hidden, lengths, row, action


def values_and_gradients(function, case, transform, weights=None):
    head, hidden, lengths, row, action = case
    q, v = function(head, hidden, lengths, row, action, SPACE, transform)
    generator = torch.Generator().manual_seed(1)
    of_q, of_v = (torch.randn(x.shape, generator=generator).to(x.dtype) for x in (q, v))
    inputs = [hidden, *(weights or head.parameters())]
    return [q, v, *torch.autograd.grad((of_q * q).sum() + (of_v * v).sum(), inputs)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize(("states", "entries"), [(4096, 1 << 21), (5, 20), (1, 1), (13, 13 * 36)])
def test_tiles_equal_the_definition(small_tiles, transform, bias, states, entries):
    """However the tiles are cut, down to one logit each; the last cut leaves a tile of one illegal action alone."""
    small_tiles(states, entries)
    case = make(bias=bias)
    expected = values_and_gradients(head_values_reference, case, transform)
    assert len(expected) == 4 + bias
    torch.testing.assert_close(values_and_gradients(head_values, case, transform), expected, rtol=1e-9, atol=1e-10)


class OwnHead(nn.Linear):
    """A head that is not just a linear layer: it must be called, not taken apart."""

    def forward(self, hidden):
        return super().forward(torch.relu(hidden)) * 2


@pytest.mark.parametrize("entries", [1, 3 * VOCAB, 1 << 21])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_other_heads_equal_the_definition(small_tiles, transform, entries):
    small_tiles(4096, entries)
    _, *rest = make()
    head = OwnHead(WIDTH, VOCAB, dtype=torch.float64)
    expected = values_and_gradients(head_values_reference, (head, *rest), transform)
    torch.testing.assert_close(values_and_gradients(head_values, (head, *rest), transform), expected)


@pytest.mark.parametrize("entries", [60, 1 << 21])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_precision(small_tiles, dtype, tolerance, entries):
    """The fast path in float32 and bfloat16 against the definition in float64."""
    small_tiles(5, entries)
    case = make(dtype=dtype)
    head, hidden, *rest = case
    found = values_and_gradients(head_values, case, TRANSFORMS["both"])
    assert found[0].dtype == found[1].dtype == torch.float32
    assert [x.dtype for x in found[2:]] == [dtype] * 3
    exact = (nn.Linear(WIDTH, VOCAB).to(torch.float64), hidden.detach().double().requires_grad_(), *rest)
    exact[0].load_state_dict(head.state_dict())
    for one, other in zip(found, values_and_gradients(head_values_reference, exact, TRANSFORMS["both"]), strict=True):
        assert (one.double() - other).norm() <= tolerance * other.norm()


def test_sums_over_many_states_are_not_rounded_on_the_way(small_tiles):
    """In bfloat16, 3,000 states in tiles of 64: the weight's gradient is as good as if it were summed in one go."""
    small_tiles(64, 64 * 9)
    head, hidden, *rest = make(3000, 3000, dtype=torch.bfloat16)
    found = values_and_gradients(head_values, (head, hidden, *rest), TRANSFORMS["plain"])[3]
    exact_head = nn.Linear(WIDTH, VOCAB).double()
    exact_head.load_state_dict(head.state_dict())
    exact = (exact_head, hidden.detach().double().requires_grad_(), *rest)
    expected = values_and_gradients(head_values_reference, exact, TRANSFORMS["plain"])[3]
    assert (found.double() - expected).norm() < 0.006 * expected.norm()


def test_autocast(small_tiles):
    small_tiles(5, 60)
    case = make(dtype=torch.float32)
    exact = values_and_gradients(head_values_reference, case, TRANSFORMS["both"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, logits = (
            values_and_gradients(f, case, TRANSFORMS["both"]) for f in (head_values, head_values_reference)
        )
    assert [x.dtype for x in found] == [torch.float32] * 5
    for one, through_logits, other in zip(found, logits, exact, strict=True):
        assert 0 < (one - other).norm() <= 1.1 * (through_logits - other).norm() <= 0.05 * other.norm()


@pytest.mark.parametrize(("states", "steps"), [(0, 0), (4, 0)])
def test_nothing_to_read(states, steps):
    case = make(states, steps)
    expected = values_and_gradients(head_values_reference, case, TRANSFORMS["both"])
    torch.testing.assert_close(values_and_gradients(head_values, case, TRANSFORMS["both"]), expected)


def test_large_logits_do_not_overflow():
    head, hidden, *rest = make(dtype=torch.float32)
    with torch.no_grad():
        hidden *= 1e4
    found = values_and_gradients(head_values, (head, hidden, *rest), TRANSFORMS["plain"])
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(
        found, values_and_gradients(head_values_reference, (head, hidden, *rest), LogitTransform())
    )


@pytest.mark.parametrize("frozen", ["head", "hidden"])
def test_only_what_is_wanted_is_computed(frozen):
    head, hidden, *rest = make()
    expected = values_and_gradients(head_values_reference, (head, hidden, *rest), TRANSFORMS["both"])
    if frozen == "head":
        head.requires_grad_(False)
    else:
        hidden.requires_grad_(False)
    q, v = head_values(head, hidden, *rest, SPACE, TRANSFORMS["both"])
    generator = torch.Generator().manual_seed(1)
    of_q, of_v = (torch.randn(x.shape, generator=generator).to(x.dtype) for x in (q, v))
    ((of_q * q).sum() + (of_v * v).sum()).backward()
    found = [hidden.grad, head.weight.grad, head.bias.grad]
    for gradient, wanted, name in zip(found, expected[2:], ("hidden", "head", "head"), strict=True):
        if name == frozen:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, wanted)


def test_the_head_is_read_between_its_own_hooks():
    """One before its forward sees one call with the hidden states, and may replace them; the head stays as it was."""
    head, hidden, *rest = make()
    plain = head(hidden)
    seen = []
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0]) or (2 * args[0],))
    q, v = head_values(head, hidden, *rest, SPACE, TRANSFORMS["both"])
    assert len(seen) == 1
    assert "TiledHead" in q.grad_fn.name()
    assert torch.equal(seen[0], hidden)
    expected = head_values_reference(deepcopy(head), hidden, *rest, SPACE, TRANSFORMS["both"])
    torch.testing.assert_close((q, v), expected)
    assert head.state_dict().keys() == {"weight", "bias"}
    torch.testing.assert_close(head(hidden / 2), plain)


def test_a_hook_that_changes_the_logits_counts():
    """Such a head is called as it is, on all of its logits."""
    head, hidden, *rest = make()
    head.register_forward_hook(lambda module, args, output: 2 * output)
    found = head_values(head, hidden, *rest, SPACE, TRANSFORMS["plain"])
    torch.testing.assert_close(found, head_values_reference(head, hidden, *rest, SPACE, TRANSFORMS["plain"]))


@pytest.mark.parametrize("copied", [deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_a_head_that_was_read_can_be_copied(copied):
    head, hidden, *rest = make()
    values = head_values(head, hidden, *rest, SPACE, TRANSFORMS["plain"])
    copy = copied(head)
    with torch.no_grad():
        head.weight.zero_()
    found = head_values(copy, hidden, *rest, SPACE, TRANSFORMS["plain"])
    torch.testing.assert_close(found, values)
    assert "TiledHead" in found[0].grad_fn.name()
    assert copy(hidden).abs().sum() > 0


def test_a_head_that_accelerate_has_hooked():
    """Its hooks, put in place of the forward before or after the first reading, still run around it."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubles(ModelHook):
        def pre_forward(self, module, hidden, **kwargs):
            return (2 * hidden,), kwargs

    head, hidden, *rest = make()
    doubled = head_values_reference(head, 2 * hidden, *rest, SPACE, TRANSFORMS["plain"])
    plain = head_values_reference(head, hidden, *rest, SPACE, TRANSFORMS["plain"])
    for expected in (doubled, plain, doubled):
        if expected is doubled:
            add_hook_to_module(head, Doubles())
        found = head_values(head, hidden, *rest, SPACE, TRANSFORMS["plain"])
        torch.testing.assert_close(found, expected)
        assert "TiledHead" in found[0].grad_fn.name()
        remove_hook_from_module(head)


def test_adapters_on_the_head(small_tiles):
    """LoRA on the head trains its factors, with the gradients that the whole logits give; dropout included."""
    from peft import LoraConfig, get_peft_model

    small_tiles(5, 3 * VOCAB)
    case = make(bias=False)
    module = nn.ModuleDict({"head": case[0]})
    peft = get_peft_model(module, LoraConfig(r=2, target_modules=["head"], init_lora_weights=False, lora_dropout=0.0))
    head = peft.base_model.model["head"].double()
    trained = [p for p in head.parameters() if p.requires_grad]
    assert len(trained) == 2
    expected = values_and_gradients(head_values_reference, (head, *case[1:]), TRANSFORMS["plain"], trained)
    torch.testing.assert_close(
        values_and_gradients(head_values, (head, *case[1:]), TRANSFORMS["plain"], trained), expected
    )


def test_the_logits_never_exist(monkeypatch):
    """No tensor that an operation returns, forward or backward, has as many entries as the logits of all states."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            returned = function(*args, **(kwargs or {}))
            largest.extend(x.numel() for x in torch.utils._pytree.tree_leaves(returned) if isinstance(x, torch.Tensor))
            return returned

    for head in (nn.Linear(WIDTH, 50_000), OwnHead(WIDTH, 50_000)):
        states, space = 400, ActionSpace(50_000, 0)
        hidden = torch.randn(states, WIDTH, requires_grad=True)
        row = torch.arange(states)
        with Watch():
            q, v = head_values(head, hidden, row, row, row, space, LogitTransform())
            (v - q).mean().backward()
        assert max(largest) <= 1 << 21 < states * 50_000
        largest.clear()


SIZES = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES = {
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 2.0}, LogitTransform(1.0, 2.0)),
    "cohere2": (Cohere2Config, {"logit_scale": 0.25}, LogitTransform(0.25)),
    "granite": (GraniteConfig, {"logits_scaling": 8.0}, LogitTransform(0.125)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_transforms_are_read_from_the_config(name):
    config_class, options, expected = FAMILIES[name]
    assert LogitTransform.of(config_class(**SIZES, **options)) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_their_own_logits(space, name, tied):
    """Tied to the input embedding or not: values and gradients of every parameter equal those through the logits."""
    from models_reference import parameter_gradients, sample_walks

    from sequencematch.models import evaluate_states, layout_of, steps_of, tree_logits
    from sequencematch.tree import collate_trajectories

    config_class, options, _ = FAMILIES[name]
    config = config_class(**SIZES, **options, tie_word_embeddings=tied, pad_token_id=None, bos_token_id=None)
    config.initializer_range = 0.3
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    batch = collate_trajectories(sample_walks(space), space, layout_of(model))
    sums = []
    for steps in (evaluate_states(model, batch, space), steps_of(tree_logits(model, batch), batch, space)):
        generator = torch.Generator().manual_seed(0)
        values = (steps.q, steps.v, steps.v_next)
        sums.append(sum((torch.randn(x.shape, generator=generator) * x).sum() for x in values))
    torch.testing.assert_close(*sums)
    one, other = (parameter_gradients(model, x) for x in sums)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
