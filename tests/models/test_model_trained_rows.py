"""Heads that peft wraps: trained rows and trained copies give what the wrapper's own forward gives, fast."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sequencematch.mdp import ALL, ActionSpace, Deletion
from sequencematch.models import LogitTransform, head_values, head_values_reference
from sequencematch.models import tiled_head as tiled_module

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # from peft

VOCAB, WIDTH = 37, 16
SPACE = ActionSpace(VOCAB, 0, (Deletion(5, 1), Deletion(VOCAB - 2, 3), Deletion(VOCAB - 1, ALL)))
TRAINED = [5, VOCAB - 1, 9]  # two deletions, in no order, and an ordinary token; one deletion is not among them
TRANSFORMS = {"plain": LogitTransform(), "scaled": LogitTransform(0.5), "capped": LogitTransform(2.0, 1.5)}


def adapted(tiny_model, tied=False, dtype=torch.float64, **options):
    """A model whose embeddings peft wraps, with trained rows that have moved away from the frozen ones."""
    model = tiny_model(vocab_size=VOCAB, tie_word_embeddings=tied)
    names = ["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"]
    options = options or {"trainable_token_indices": dict.fromkeys(names, TRAINED)}
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **options)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens" in name or "modules_to_save" in name:
                parameter += torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def case_of(dtype=torch.float64, states=23):
    """Hidden states, completion lengths that make some deletions illegal, and legal steps from the states."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(states, WIDTH, generator=generator).to(dtype).requires_grad_()
    lengths = torch.randint(0, 4, (states,), generator=generator)
    legal = [
        (state, action)
        for state in range(states)
        for action in (1, 5, 9, 20, VOCAB - 2, VOCAB - 1)
        if SPACE.is_legal(action, int(lengths[state]))
    ]
    return hidden, lengths, *torch.tensor(legal).t()


def values_and_gradients(function, head, case, transform, trained):
    q, v = function(head, *case, SPACE, transform)
    generator = torch.Generator().manual_seed(3)
    of_q, of_v = (torch.randn(x.shape, generator=generator).to(x.dtype) for x in (q, v))
    inputs = [case[0], *trained]
    return [q, v, *torch.autograd.grad((of_q * q).sum() + (of_v * v).sum(), inputs)]


def trained_rows(head):
    return [head.token_adapter.trainable_tokens_delta["default"]]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_trained_rows_equal_the_wrapper(tiny_model, monkeypatch, transform, tied):
    monkeypatch.setattr(tiled_module, "TILE_STATES", 5)
    monkeypatch.setattr(tiled_module, "tile_entries", lambda device: 40)
    head = adapted(tiny_model, tied).get_base_model().get_output_embeddings()
    case, trained = case_of(), trained_rows(head)
    found = values_and_gradients(head_values, head, case, transform, trained)
    expected = values_and_gradients(head_values_reference, head, case, transform, trained)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert "Logaddexp" in found[1].grad_fn.name()
    assert all(gradient.abs().min() > 0 for gradient in expected[2:])


def test_trained_rows_in_float32(tiny_model):
    exact = adapted(tiny_model).get_base_model().get_output_embeddings()
    head = copy.deepcopy(exact).float()
    wanted = values_and_gradients(head_values_reference, exact, case_of(), TRANSFORMS["capped"], trained_rows(exact))
    found = values_and_gradients(head_values, head, case_of(torch.float32), TRANSFORMS["capped"], trained_rows(head))
    assert {x.dtype for x in found} == {torch.float32}
    torch.testing.assert_close(found, [x.float() for x in wanted], rtol=1e-4, atol=1e-5)


def test_states_in_which_no_trained_action_is_legal(tiny_model):
    """Only deletions are trained, and the completion is empty: their probability is zero, and so is their gradient."""
    options = {"trainable_token_indices": {"lm_head": [5, VOCAB - 2, VOCAB - 1]}}
    head = adapted(tiny_model, **options).get_base_model().get_output_embeddings()
    hidden, _, row, _ = case_of()
    case = (hidden, torch.zeros(len(hidden), dtype=torch.long), row, torch.full_like(row, 7))
    found = values_and_gradients(head_values, head, case, TRANSFORMS["plain"], trained_rows(head))
    expected = values_and_gradients(head_values_reference, head, case, TRANSFORMS["plain"], trained_rows(head))
    torch.testing.assert_close(found, expected)
    assert found[-1].abs().max() == 0


def test_the_frozen_matrix_gets_no_gradient_and_is_never_copied(tiny_model):
    from torch.utils._python_dispatch import TorchDispatchMode

    head = adapted(tiny_model).get_base_model().get_output_embeddings()
    called = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            returned = function(*args, **(kwargs or {}))
            shapes = [x.shape for x in torch.utils._pytree.tree_leaves(returned) if isinstance(x, torch.Tensor)]
            called.extend((function, shape) for shape in shapes if shape == (VOCAB, WIDTH))
            return returned

    with Watch():
        q, v = head_values(head, *case_of(), SPACE, LogitTransform())
        (v.mean() - q.mean()).backward()
    made = {str(function) for function, _ in called}
    assert made <= {"aten.slice.Tensor", "aten.detach.default", "aten.alias.default"}, made  # views
    assert head.token_adapter.base_layer.weight.grad is None
    assert trained_rows(head)[0].grad.abs().sum() > 0


@pytest.mark.parametrize("how", ["disabled", "merged", "unmerged"])
def test_adapters_that_are_not_simply_active(tiny_model, how):
    """Whatever the adapters' state, the values are those of the wrapper's own forward."""
    model = adapted(tiny_model)
    head, case = model.get_base_model().get_output_embeddings(), case_of()
    active = head_values(head, *case, SPACE, LogitTransform())
    if how == "disabled":
        model.base_model.disable_adapter_layers()
    else:
        model.merge_adapter()
    if how == "unmerged":
        model.unmerge_adapter()
    found = head_values(head, *case, SPACE, LogitTransform())
    torch.testing.assert_close(found, head_values_reference(head, *case, SPACE, LogitTransform()))
    assert torch.allclose(found[1], active[1]) == (how != "disabled")


@pytest.mark.parametrize("disabled", [False, True])
def test_a_trained_copy_of_the_head(tiny_model, disabled):
    model = adapted(tiny_model, modules_to_save=["lm_head"])
    if disabled:
        model.base_model.disable_adapter_layers()
    head, case = model.get_base_model().get_output_embeddings(), case_of()
    trained = [] if disabled else [head.modules_to_save["default"].weight]
    expected = values_and_gradients(head_values_reference, head, case, TRANSFORMS["capped"], trained)
    found = values_and_gradients(head_values, head, case, TRANSFORMS["capped"], trained)
    torch.testing.assert_close(found, expected)
    assert disabled or "TiledHead" in found[0].grad_fn.name()
