"""Weights sharded over processes (FSDP2): the tree's loss and gradients are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
import torch.distributed as dist
import transformers
from models_reference import sample_walks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sequencematch.mdp import ActionSpace, Deletion
from sequencematch.models import evaluate_states, head, prepare_model
from sequencematch.objectives import bc_loss
from sequencematch.tree import collate_trajectories

dist.init_process_group("gloo")
space = ActionSpace(11, 0, (Deletion(8, 1), Deletion(9, 3), Deletion(10, "all")))
sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
config = transformers.LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=None, eos_token_id=0)
batch = collate_trajectories(sample_walks(space), space)

def steps(model, count):
    # Losses and gradients of so many optimizer steps in a row.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for _ in range(count):
        optimizer.zero_grad()
        loss, _ = bc_loss(evaluate_states(model, batch, space))
        loss.backward()
        found.append((loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}))
        optimizer.step()
    return found

def new_model():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    prepare_model(model)
    return model

alone = steps(new_model(), 3)
assert [loss for loss, _ in alone] == sorted((loss for loss, _ in alone), reverse=True)
mesh = init_device_mesh("cpu", (2,))
head._chunked_head = None  # sharded or not, the head is plain: it is never called for all of its logits
for where in ("rest", "head", "tail"):
    model = new_model()
    groups = {"rest": [], "head": [model.lm_head], "tail": [[model.model.norm, model.lm_head]]}[where]
    for module in (*model.model.layers, *groups, model):
        fully_shard(module, mesh=mesh)
    for (loss, gradients), (sharded_loss, sharded) in zip(alone, steps(model, 3), strict=True):
        torch.testing.assert_close(sharded_loss, loss)
        for name, gradient in gradients.items():
            assert isinstance(sharded[name], torch.distributed.tensor.DTensor)
            torch.testing.assert_close(sharded[name].full_tensor(), gradient)
    print(f"equal {where}", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_weights_give_the_same_losses(tmp_path):
    """The head sharded with the rest of the model, by itself, or with the final norm, as accelerate does."""
    script = tmp_path / "sharded.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(done.stdout.count(f"equal {where}") == 2 for where in ("rest", "head", "tail")), done.stdout
