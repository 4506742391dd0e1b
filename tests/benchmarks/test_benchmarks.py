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
    "rollout": {
        "vs_generate_ragged",
        "vs_generate_equal",
        "vs_continuous_batching_5",
        "vs_backtrack_sampler",
        "time_per_action_20_over_0",
    },
    "trainer": {"trainer_time_over_same_loss", "ours_two_processes_speed", "ours_two_over_what_the_cores_allow"},
    "vllm_loop": {"loop_vs_plain_5", "loop_vs_plain_20", "handover_time_vs_plain"},
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
    [
        ("train_step", ["--budget", "1"]),
        ("memory", ["--quick", "--vocabularies", "32k"]),
        ("trainer", ["--quick", "--budget", "1", "--no_processes"]),
        ("rollout", ["--quick", "--budget", "1", "--no_rivals"]),
    ],
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
    expected = {"memory": {"peak_memory_vs_hf_32k"}, "rollout": RATIOS["rollout"] - {"vs_backtrack_sampler"}}
    expected["trainer"] = {"trainer_time_over_same_loss"}
    assert expected.get(script, RATIOS[script]) <= set(printed["ratios"])


@pytest.mark.parametrize("name", RATIOS)
def test_the_committed_results_have_the_named_ratios(name):
    record = json.loads((BENCHMARKS / "results" / f"{name}-cpu.json").read_text())
    assert RATIOS[name] <= set(record["ratios"])
    assert record["environment"]["uncommitted_changes"] is False


@pytest.mark.usefixtures("benchmark_modules")
def test_a_models_chances_to_end_and_to_delete_are_set():
    """What makes the arms of the rollout benchmark comparable."""
    from rollout import LOADS, Bench
    from workload import BACKSPACE, EOS, SIZES

    bench = Bench(SIZES["tiny"], LOADS["tiny"], "cpu", seed=0)
    bench.set(1 / 16, 0.2)
    ids = torch.tensor([prompt[:4] for prompt in bench.ragged])
    with torch.no_grad():
        p = bench.stock(input_ids=ids).logits[:, -1].softmax(-1).mean(0)
    assert float(p[EOS]) == pytest.approx(1 / 16, rel=0.1)
    assert float(p[BACKSPACE]) == pytest.approx(0.2, rel=0.1)
    actions, seconds = bench.ours(bench.ragged[:8], 16, 1 / 16, 0.2)
    assert actions > 20
    assert seconds > 0


@pytest.mark.usefixtures("benchmark_modules")
def test_other_libraries_are_pinned_and_a_failed_installation_is_one_sentence():
    import rivals

    assert all("==" in requirement for wanted in rivals.RIVALS.values() for requirement in wanted)
    failing = [sys.executable, "-c", "raise SystemExit('WARNING: slow\\nERROR: not found')"]
    with pytest.raises(RuntimeError, match=r"^No environment for nowhere: ERROR: not found$"):
        rivals._run("nowhere", failing)
