"""The benchmarks run, compare like with like, and keep their ratios."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATIOS = {
    "train_step": {
        "sequencematch_vs_hf",
        "sequencematch_vs_trl",
        "mixture_time_vs_hf",
        "vs_refeed_10",
        "vs_refeed_30",
        "vs_refeed_shared_prompt",
    },
    "memory": {"peak_memory_vs_hf_128k"},
    "scaling": {"cost_per_node_32k_over_2k", "memory_deviation_from_line"},
}
FLOORS = {"sequencematch_vs_hf": 0.5, "vs_refeed_30": 0.9, "vs_refeed_shared_prompt": 2.0}
"""Half of what the smallest model has on an idle CPU; on a busy one, ratios of paired steps still hold."""


@pytest.fixture
def benchmark_modules(monkeypatch):
    """The folder's modules import each other by plain name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.usefixtures("benchmark_modules")
def test_the_speed_has_not_silently_halved():
    from train_step import tiny_ratios

    found = tiny_ratios()
    assert {name: found[name] for name in FLOORS if found[name] < FLOORS[name]} == {}


@pytest.mark.usefixtures("benchmark_modules")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.45])
def test_the_papers_scheme_computes_the_same_loss(share):
    """Re-feeding, re-feeding with our head, and the state tree: one number."""
    import refeed
    from workload import SIZES, mistaken, shared_prompts

    from sequencematch.models import prepare_model

    size = SIZES["tiny"]
    stock, ours = size.model("cpu"), size.model("cpu")
    prepare_model(ours)
    rng = np.random.default_rng(0)
    demonstrations = [*mistaken(3, 40, share, size.vocab, rng), *shared_prompts(size, rng)[:4]]
    with torch.no_grad():
        losses = refeed.losses_of_both(stock, ours, demonstrations, size.space)
    assert losses[0] > 50
    torch.testing.assert_close(losses[1:], (losses[0], losses[0]), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [("train_step", ["--budget", "1"]), ("memory", ["--quick", "--vocabularies", "32k"])],
)
def test_a_script_ends_with_a_line_of_json_and_stores_it(script, options, tmp_path):
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--size", "tiny", "--device", "cpu", *options]
    command += ["--threads", "1", "--results", str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    printed = json.loads(output.splitlines()[-1])
    (stored,) = (json.loads(path.read_text()) for path in tmp_path.iterdir())
    assert printed["ratios"] == stored["ratios"]
    assert all(value > 0 for value in printed["ratios"].values())
    assert {"torch", "transformers", "cpu", "date", "threads"} <= set(printed["environment"])
    expected = RATIOS[script] if script == "train_step" else {"peak_memory_vs_hf_32k"}
    assert expected <= set(printed["ratios"])


@pytest.mark.parametrize("name", RATIOS)
def test_the_committed_results_have_the_named_ratios(name):
    record = json.loads((BENCHMARKS / "results" / f"{name}-cpu.json").read_text())
    assert RATIOS[name] <= set(record["ratios"])
    assert record["environment"]["uncommitted_changes"] is False
