"""Weights sharded over processes (FSDP2): the tree's loss and gradients are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
import transformers
from models_reference import sample_walks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sequencematch.mdp import ActionSpace, Deletion
from sequencematch.models import evaluate_states, layout_of, prepare_model
from sequencematch.objectives import bc_loss
from sequencematch.tree import collate_trajectories

dist.init_process_group("gloo")
space = ActionSpace(11, 0, (Deletion(8, 1), Deletion(9, 3), Deletion(10, "all")))
sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
config = transformers.LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=None, eos_token_id=0)
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_config(config)
prepare_model(model)
batch = collate_trajectories(sample_walks(space), space, layout_of(model))

def loss_and_gradients():
    model.zero_grad()
    loss, _ = bc_loss(evaluate_states(model, batch, space))
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}

loss, gradients = loss_and_gradients()
mesh = init_device_mesh("cpu", (2,))
alone = [model.lm_head] if sys.argv[1] == "head" else []
for module in (*model.model.layers, *alone, model):
    fully_shard(module, mesh=mesh)
sharded_loss, sharded = loss_and_gradients()
torch.testing.assert_close(sharded_loss, loss)
for name, gradient in gradients.items():
    assert isinstance(sharded[name], torch.distributed.tensor.DTensor)
    torch.testing.assert_close(sharded[name].full_tensor(), gradient)
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("head", ["with the rest", "head"])
def test_sharded_weights_give_the_same_loss(head, tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        head,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.count("equal") == 2, done.stderr[-2000:]
