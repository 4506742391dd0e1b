"""The memory estimate: its parts add up, and a real step needs about that much."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sequencematch.training.memory import memory_estimate

ROOT = Path(__file__).parents[2]
STEP = Path(__file__).with_name("memory_step.py")
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_layers": 8, "vocab_size": 8192}
GIVEN = {
    **SHAPE,
    "trainable_parameters": 9_000_000,
    "parameter_bytes": 4,
    "frozen_bytes": 0,
    "optimizer": "adamw_torch_fused",
    "nodes": 1024,
    "activation_bytes": 4,
    "gradient_checkpointing": False,
    "tile_entries": 1 << 21,
}


def estimate(**changes):
    return memory_estimate(**{**GIVEN, **changes})


def test_parts_of_a_full_fine_tuning():
    found = estimate()
    assert found.weights == found.gradients == 36_000_000
    assert found.optimizer == 2 * found.weights
    assert found.head == 4 * (1 << 21) + 2 * 1024 * 256 * 4
    assert found.total == found.weights + found.gradients + found.optimizer + found.activations + found.head


def test_adapters_have_small_gradients_and_the_same_activations():
    full, adapted = estimate(), estimate(trainable_parameters=100_000, frozen_bytes=36_000_000)
    assert adapted.weights == 36_400_000
    assert adapted.gradients == 400_000
    assert adapted.optimizer == 800_000
    assert adapted.activations == full.activations


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [
        ("adamw_torch", 8),
        ("paged_adamw_8bit", 2),
        ("sgd", 0),
        ("lion_32bit", 4),
        ("adafactor", 0),
        ("something_new", 8),
    ],
)
def test_states_of_optimizers(optimizer, bytes_each):
    assert estimate(optimizer=optimizer).optimizer == 9_000_000 * bytes_each


def test_activations_grow_with_nodes_and_layers():
    one, two = estimate(num_layers=1).activations, estimate(num_layers=2).activations
    assert estimate(num_layers=8).activations == one + 7 * (two - one)
    assert estimate(nodes=2048).activations == 2 * estimate().activations


def test_checkpointing_saves_what_layers_keep_but_not_their_inputs():
    plain, saved = estimate().activations, estimate(gradient_checkpointing=True).activations
    layer = plain - estimate(num_layers=7).activations
    inputs = 8 * 1024 * 256 * 4
    assert saved == plain - 7 * layer + inputs


def test_a_tile_is_no_larger_than_all_logits():
    small = estimate(vocab_size=16, nodes=10)
    assert small.head == 4 * 16 * 10 + 2 * 10 * 256 * 4
    assert estimate(tile_entries=1 << 25).head > estimate().head


def test_half_precision_halves_most_of_it():
    full, half = estimate(), estimate(parameter_bytes=2, activation_bytes=2)
    assert half.weights * 2 == full.weights
    assert 0.5 < half.activations / full.activations < 0.6
    autocast = estimate(activation_bytes=2)
    assert autocast.activations == half.activations + 2 * GIVEN["trainable_parameters"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_step_needs_about_what_is_estimated():
    """A model of 9M parameters with AdamW on a CPU, its layers kept or run again."""
    size = {"hidden": 256, "intermediate": 768, "layers": 8, "heads": 8, "vocab": 8192}
    cases = [{"size": {**size, "checkpointing": again}, "rows": 4, "length": 256} for again in (False, True)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "benchmarks")}
    done = subprocess.run([sys.executable, STEP, json.dumps(cases)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for case, measured in zip(cases, json.loads(done.stdout), strict=True):
        expected = estimate(
            trainable_parameters=measured["parameters"],
            nodes=measured["nodes"],
            gradient_checkpointing=case["size"]["checkpointing"],
        )
        assert measured["nodes"] == 1024
        assert 1 / 1.3 < expected.total / measured["bytes"] < 1.3
