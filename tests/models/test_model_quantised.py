"""QLoRA: a model in four bits learns to delete through its adapters, and reloads the same."""

import importlib.util

import pytest
import torch
from peft import LoraConfig

from sequencematch.errors import InputError
from sequencematch.mdp import ActionSpace, Trajectory
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
    require_bitsandbytes,
    save_adapters,
)
from sequencematch.objectives import bc_loss
from sequencematch.rollouts import HFRolloutEngine
from sequencematch.tree import collate_trajectories

BKSP = 19

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # from peft


@pytest.fixture
def load(tiny_model, tokenizer, tmp_path):
    """`load(folder=None)`: a small model in four bits, or the adapters in a folder on it."""
    from transformers import BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 19, "eos_token_id": 1}
    tiny_model("llama", **sizes).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    def make(folder=None):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return load_model(str(folder or tmp_path / "base"), quantization_config=config)

    return make


def steps_of(model, space):
    walks = [([3, 4], [5, BKSP, 6, 1]), ([7], [8, 9, BKSP, 5, 1])]
    trajectories = [Trajectory(prompt, actions, terminated=True) for prompt, actions in walks]
    return evaluate_states(model, collate_trajectories(trajectories, space, layout_of(model)), space)


@pytest.mark.slow
def test_qlora(load, tokenizer, tmp_path):
    model = load()
    assert "Linear4bit" in str(model)
    space = add_backspace_token(model, tokenizer)
    prepare_model(model)
    model = add_adapters(model, LoraConfig(r=8, target_modules="all-linear"), space)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    row = model.get_base_model().get_output_embeddings().token_adapter.trainable_tokens_delta["default"]
    before = row.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss, _ = bc_loss(steps_of(model, space))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert (row - before).norm() > 0.01
    check_trainable(model, space)

    save_adapters(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert action_space(again, load_tokenizer(str(tmp_path / "saved"))) == space
    with torch.no_grad():
        found, expected = steps_of(again, space), steps_of(model.eval(), space)
    torch.testing.assert_close((found.q, found.v, found.deletes), (expected.q, expected.v, expected.deletes))


@pytest.mark.slow
@pytest.mark.parametrize("ready", [prepare_model, lambda model: HFRolloutEngine(model, ActionSpace(19, 1))])
def test_gradients_are_the_same_after_a_run_in_evaluation_mode(load, ready):
    """Some processors have other code for that, without a backward pass; bitsandbytes changes the weights for it."""
    gradients = []
    for runs in (False, True):
        model = load()
        ready(model)
        if runs:
            with torch.no_grad():
                model.eval()(input_ids=torch.tensor([[3, 4, 5]]))
        embeddings = model.get_input_embeddings().weight.requires_grad_(True)
        model.train()(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1].log_softmax(-1)[6].backward()
        gradients.append(embeddings.grad)
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients)


def test_a_model_whose_layers_were_changed_for_inference(load):
    model = load()
    weight = next(p for p in model.parameters() if hasattr(p, "quant_state"))
    weight.quant_state.packing_format_for_cpu = True
    for start in (check_trainable, lambda *given: add_adapters(given[0], LoraConfig(), given[1])):
        with pytest.raises(InputError, match="load the model anew, and train it before it runs"):
            start(model, ActionSpace(19, 1))


def test_a_quantised_model_without_adapters(load):
    with pytest.raises(InputError, match="a quantised model trains through adapters only; pass a peft_config"):
        check_trainable(load(), ActionSpace(19, 1))


def test_without_bitsandbytes(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(InputError, match=r"need the bitsandbytes package; pip install 'sequencematch\[quantisation\]'"):
        require_bitsandbytes()
