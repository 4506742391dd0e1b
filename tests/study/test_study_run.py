"""Studies from file to results: what is run, what is not run again, and what is written."""

import io
import json
import os
import queue
import subprocess
import sys

import numpy as np
import pandas
import psutil
import pytest
import torch
from rich.console import Console
from study_files import tiny

from sequencematch import InputError
from sequencematch.evaluation.statistics import adjust, paired_difference, seed_interval
from sequencematch.mdp import ActionSpace
from sequencematch.models import action_space, load_model, load_tokenizer
from sequencematch.study import Study, run_studies
from sequencematch.study.environment import environment, joined
from sequencematch.study.run import jobs_of
from sequencematch.study.runs import do
from sequencematch.study.summary import comparisons

GROWN = tiny(
    vary=[{"arms": ["bc"], "options": {"noise_rate": [0.25]}}],
    pretrain={"objective": "mle", "noise_source": "none", "deletions": {}, "max_steps": 2},
)


def run(study, folder, store):
    console = Console(file=io.StringIO(), width=200)
    run_studies([study], [folder], store, console, workers=2)
    return console.file.getvalue()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has run: the study, the folder of its results, the store, what was printed."""
    home = tmp_path_factory.mktemp("study")
    study = Study.of("tiny", GROWN)
    printed = run(study, home / "results", home / "store")
    return study, home / "results", home / "store", printed


def test_every_cell_is_trained_once_for_each_seed_with_equal_steps(finished):
    _, folder, store, printed = finished
    runs = lines(folder / "runs.jsonl")
    assert [(entry["cell"], entry["seed"]) for entry in runs] == [
        (cell, seed) for seed in (0, 1) for cell in ("mle", "bc", "bc, noise_rate=0.25")
    ]
    for entry in runs:
        assert entry["steps"] == 3
        assert entry["seconds"] > 0
        assert entry["tokens"] > 0
        assert [point["step"] for point in entry["curve"]] == [1, 2, 3]
    assert printed.count("done, trained in") == 8  # with the checkpoint of each seed
    assert len(list(store.glob("*/run.json"))) == 8


def test_arms_start_from_their_seeds_checkpoint(finished):
    study, _, store, _ = finished
    jobs, _ = jobs_of(study, store)
    starts = {seed: {jobs[cell.name, seed].start.key for cell in study.cells} for seed in study.seeds}
    assert all(len(keys) == 1 for keys in starts.values())
    assert starts[0] != starts[1]
    checkpoint = load_model(str(jobs["mle", 0].start.folder)).state_dict()
    config = (jobs["mle", 0].folder / "config.yaml").read_text()
    assert f"model_name_or_path: {jobs['mle', 0].start.folder}" in config
    # At three steps of a small learning rate the weights are still near, which those of another seed are not.
    for seed, near in ((0, True), (1, False)):
        other = load_model(str(jobs["mle", seed].folder)).state_dict()
        same = np.isclose(other["lm_head.weight"], checkpoint["lm_head.weight"], atol=1e-3).mean() > 0.99
        assert same == near


def test_results_are_those_of_the_questions(finished):
    _, folder, _, _ = finished
    results, table = lines(folder / "results.jsonl"), pandas.read_parquet(folder / "questions.parquet")
    assert len(results) == 3 * 2 * 2
    assert len(table) == len(results) * 12
    assert set(table["group"]) == {"degree 2, length 1", "degree 2, length 2"}
    for entry in results:
        chosen = table[np.logical_and.reduce([table[key] == entry[key] for key in ("cell", "seed", "decoding")])]
        assert list(chosen["question"]) == list(range(12))
        assert entry["metrics"]["accuracy"] == pytest.approx(chosen["score"].mean())
        assert entry["metrics"]["actions"] == pytest.approx(chosen["actions"].mean())
        assert entry["metrics"]["deletion_rate"] == pytest.approx(chosen["deletions"].sum() / chosen["actions"].sum())
        low, high = entry["intervals"]["accuracy"]
        assert low <= entry["metrics"]["accuracy"] <= high
        assert (entry["metrics"]["deletion_rate"] > 0) <= (entry["cell"] != "mle")


def test_summaries_and_comparisons(finished):
    _, folder, _, _ = finished
    results = lines(folder / "results.jsonl")
    for entry in lines(folder / "summary.jsonl"):
        values = [
            found["metrics"][entry["metric"]]
            for found in results
            if (found["cell"], found["decoding"]) == (entry["cell"], entry["decoding"])
        ]
        expected = seed_interval(values)
        assert (entry["mean"], entry["low"], entry["high"]) == (expected.estimate, expected.low, expected.high)
        assert entry["seeds"] == 2
    table = (
        pandas.read_parquet(folder / "questions.parquet")
        .set_index(["cell", "decoding", "seed", "question"])
        .sort_index()
    )
    found = lines(folder / "comparisons.jsonl")
    assert [(entry["cell"], entry["decoding"]) for entry in found] == [
        (cell, decoding) for decoding in ("sampled", "greedy") for cell in ("bc", "bc, noise_rate=0.25")
    ]
    for entry in found:
        one, other = (
            np.array([table["score"].loc[cell, entry["decoding"], seed].to_numpy() for seed in (0, 1)])
            for cell in (entry["cell"], "mle")
        )
        expected = paired_difference(one, other)
        assert (entry["difference"], entry["p"], entry["unit"]) == (expected.difference, expected.p, "questions")
        assert entry["p_adjusted"] >= entry["p"]


def test_transcripts_are_of_the_first_seed(finished):
    _, folder, _, _ = finished
    found = lines(folder / "transcripts.jsonl")
    assert len(found) == 3 * 2
    assert {entry["seed"] for entry in found} == {0}
    for entry in found:
        assert len(entry["items"]) == 3
        for item in entry["items"]:
            standing = "".join(piece["text"] for piece in item["pieces"] if piece["fate"] == "kept")
            assert standing == item["completion"]


def test_the_study_says_how_it_was_made(finished):
    _, folder, _, _ = finished
    about = json.loads((folder / "study.json").read_text())
    assert about["budget"] == {"unit": "steps", "amount": 3}
    assert about["questions"] == 12
    assert about["cells"][2] == {"cell": "bc, noise_rate=0.25", "arm": "bc", "factors": {"noise_rate": 0.25}}
    assert about["versions"]["torch"] == torch.__version__
    assert about["hardware"]["cores"] == os.cpu_count()
    assert about["config"]["options"]["noise_rate"] == 0.5


def test_runs_of_several_machines_name_them_all():
    """Runs of one study may come from different machines; each says with what it ran."""
    here = environment()
    there = {"versions": {**here["versions"], "torch": "2.99"}, "hardware": {**here["hardware"], "accelerator": "fast"}}
    found = joined([here, there, here])
    assert found["versions"]["torch"] == f"{torch.__version__} and 2.99"
    assert found["versions"]["python"] == here["versions"]["python"]
    assert found["hardware"] == {**here["hardware"], "accelerator": "fast"}


def test_models_are_left_ready_to_use(finished):
    study, _, store, _ = finished
    jobs, _ = jobs_of(study, store)
    folder = str(jobs["bc", 1].folder)
    space = action_space(load_model(folder), load_tokenizer(folder))
    assert isinstance(space, ActionSpace)
    assert len(space.deletions) == 1


def test_nothing_is_run_twice(finished, tmp_path):
    study, folder, store, _ = finished
    before = {path: os.stat(path).st_mtime_ns for path in store.rglob("*.json")}
    assert "done" not in run(study, tmp_path / "again", store)
    assert {path: os.stat(path).st_mtime_ns for path in store.rglob("*.json")} == before
    for name in ("results", "summary", "comparisons", "runs", "transcripts"):
        assert (tmp_path / "again" / f"{name}.jsonl").read_text() == (folder / f"{name}.jsonl").read_text()


def test_only_what_is_missing_is_run(finished, tmp_path):
    """A killed run leaves a folder without run.json, a killed evaluation no file: these are done anew, nothing else."""
    study, folder, store, _ = finished
    jobs, _ = jobs_of(study, store)
    killed, unmeasured = jobs["bc", 0], jobs["mle", 1]
    (killed.folder / "run.json").unlink()
    (killed.folder / "checkpoint-1").mkdir()
    unmeasured.evaluation_file("greedy").unlink()
    kept = {job.key: (job.folder / "run.json").stat().st_mtime_ns for job in jobs.values() if job is not killed}
    printed = run(study, tmp_path / "again", store)
    assert printed.count("done, trained in") == 2
    assert not (killed.folder / "checkpoint-1").exists()
    for job in jobs.values():
        if job is not killed:
            assert (job.folder / "run.json").stat().st_mtime_ns == kept[job.key]
    # What is run again gives the same numbers.
    found, before = (lines(place / "results.jsonl") for place in (tmp_path / "again", folder))
    for entry, old in zip(found, before, strict=True):
        entry["metrics"].pop("seconds"), old["metrics"].pop("seconds")
        assert entry == old


def test_a_runs_address_follows_from_all_that_decides_it(tmp_path):
    def keys(**changes):
        jobs, _ = jobs_of(Study.of("tiny", tiny(**changes)), tmp_path)
        return {where: job.key for where, job in jobs.items()}

    plain = keys()
    assert len(set(plain.values())) == 4
    assert keys(title="Another", decoding={"hot": {"temperature": 2.0}}, seeds=[1, 0]) == plain
    for changes in (
        {"budget": {"steps": 4}},
        {"pretrain": {"objective": "mle", "max_steps": 2}},
        {"options": tiny()["options"] | {"learning_rate": 1.0}},
    ):
        assert not set(keys(**changes).values()) & set(plain.values())


def test_a_way_of_decoding_is_measured_anew_when_it_changes(tmp_path):
    def file(decoding, **changes):
        jobs, _ = jobs_of(Study.of("tiny", tiny(decoding={"it": decoding}, **changes)), tmp_path)
        return jobs["bc", 0].evaluation_file("it")

    assert file({"temperature": 1}) != file({"temperature": 2})
    assert file({"temperature": 1}) != file({"temperature": 1}, evaluation={"transcripts": 5})


def test_without_deletions_a_way_of_decoding_that_differs_only_in_them_is_not_measured_again(tmp_path):
    greedy = {"greedy": {"temperature": 0}, "exclude": {"temperature": 0, "retry": "exclude"}}
    forbidden = {"forbidden": {"temperature": 0, "allow_backspace": False}}
    study = Study.of("ways", tiny(decoding={**greedy, **forbidden, "sampled": {}}, seeds=[0]))
    jobs, _ = jobs_of(study, tmp_path / "store")
    assert jobs["mle", 0].missing == [None, "greedy", "sampled"]
    assert jobs["bc", 0].missing == [None, "greedy", "exclude", "forbidden", "sampled"]
    run(study, tmp_path / "results", tmp_path / "store")
    found = {
        (entry["cell"], entry["decoding"]): entry["metrics"] for entry in lines(tmp_path / "results/results.jsonl")
    }
    assert found["mle", "exclude"] == found["mle", "forbidden"] == found["mle", "greedy"]
    assert ("bc", "exclude") in found


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_accuracy_of_few_seeds_is_compared_by_questions(seeds):
    study = Study.of("tiny", tiny(evaluation={"metrics": ["accuracy"]}, seeds=seeds))
    rng = np.random.default_rng(0)
    scores = {
        (cell.name, decoding): (rng.random((len(seeds), 20)) < 0.2 + 0.3 * index).astype(float)
        for index, cell in enumerate(study.cells)
        for decoding in study.decoding
    }
    table = pandas.DataFrame(
        [
            {"cell": cell, "decoding": decoding, "seed": seed, "question": question, "score": values[seed, question]}
            for (cell, decoding), values in scores.items()
            for seed in seeds
            for question in range(20)
        ]
    )
    rows = comparisons(study, study.cells, [], table)
    assert len(rows) == (len(study.cells) - 1) * len(study.decoding)
    for row in rows:
        expected = paired_difference(*(scores[cell, row["decoding"]] for cell in (row["cell"], study.baseline)))
        assert (row["difference"], row["p"], row["unit"]) == (expected.difference, expected.p, "questions")
        assert row["difference"] > 0


def test_comparisons_that_repeat_each_other_count_once():
    study = Study.of("tiny", tiny(evaluation={"metrics": ["perplexity"]}, seeds=[0, 1, 2]))
    once, twice = study.evaluation.main[:2]
    values = {
        ("mle", "sampled"): {once: (3.0, 3.5, 4.0), twice: (1.0, 2.0, 3.0)},
        ("mle", "greedy"): {once: (3.0, 3.5, 4.0), twice: (2.0, 3.0, 4.0)},  # the same differences of other numbers
        ("bc", "sampled"): {once: (3.2, 3.6, 4.3), twice: (1.25, 2.5, 3.5)},
        ("bc", "greedy"): {once: (3.2, 3.6, 4.3), twice: (2.25, 3.5, 4.5)},
    }
    results = [
        {
            "cell": cell,
            "decoding": decoding,
            "seed": seed,
            "metrics": {name: given[seed] for name, given in found.items()},
            "intervals": {},
        }
        for (cell, decoding), found in values.items()
        for seed in study.seeds
    ]
    rows = comparisons(study, study.cells, results, pandas.DataFrame())
    assert [(row["metric"], row["decoding"]) for row in rows] == [
        (metric, decoding) for metric in (once, twice) for decoding in ("sampled", "greedy")
    ]
    assert rows[0]["p"] == rows[1]["p"]
    assert rows[2]["p"] == rows[3]["p"]
    expected = adjust([row["p"] for row in rows[1:]])
    assert [row["p_adjusted"] for row in rows] == [expected[0], *expected]
    assert adjust([row["p"] for row in rows]) != [row["p_adjusted"] for row in rows]


def test_a_model_that_comes_with_deletions_keeps_them_apart(tmp_path):
    decoding = {"greedy": {"temperature": 0}, "exclude": {"temperature": 0, "retry": "exclude"}}
    given = {"objective": "mle", "noise_source": "none", "max_steps": 2}
    for pretrain, ways in (({**given, "deletions": {}}, 1), (given, 2)):
        jobs, _ = jobs_of(Study.of("ways", tiny(decoding=decoding, pretrain=pretrain)), tmp_path)
        assert len(jobs["mle", 0].missing) == 1 + ways


def test_a_run_that_fails_is_named_and_keeps_no_other_from_running(tmp_path):
    arms = {"mle": tiny()["arms"]["mle"], "bad": {"per_device_train_batch_size": 4, "max_length": 3}}
    study = Study.of("tiny", tiny(arms=arms, seeds=[0]))
    console = Console(file=io.StringIO(), width=300)
    with pytest.raises(InputError, match=r"1 runs failed \(tiny/bad 0\)"):
        run_studies([study], [tmp_path / "results"], tmp_path / "store", console, workers=1)
    assert "tiny/bad 0 failed: " in console.file.getvalue()
    assert "max_length=3" in console.file.getvalue()
    assert "tiny/mle 0 done" in console.file.getvalue()
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("unit", ["seconds", "tokens"])
def test_a_budget_in_other_units_is_spent_and_not_exceeded_by_much(unit, tmp_path):
    amount = {"seconds": 4.0, "tokens": 12_000}[unit]
    options = tiny()["options"] | {"max_steps": 100, "warmup_steps": 10, "logging_steps": 50}
    study = Study.of("tiny", tiny(budget={unit: amount}, options=options, seeds=[0], arms={"bc": {"objective": "bc"}}))
    (job,) = jobs_of(study, tmp_path)[1]
    do([job], queue.Queue())
    entry = job.load_run()
    slack = {"seconds": 0.6, "tokens": 0.1}[unit]  # a busy machine is fast and slow by turns
    assert entry[unit] == pytest.approx(amount, rel=slack)
    assert entry["steps"] > 3


OUTLIVED = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from sequencematch.study.pool import start_manager, use_one_thread

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with start_manager(context) as manager, ProcessPoolExecutor(1, context, use_one_thread) as pool:
        print(pool.submit(os.getpid).result(), manager._process.pid, flush=True)
        time.sleep(60)
"""


def test_workers_do_not_outlive_a_study_that_is_killed(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(OUTLIVED)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        below = [psutil.Process(int(number)) for number in study.stdout.readline().split()]
        study.kill()
    assert len(below) == 2
    _, alive = psutil.wait_procs(below, timeout=10)
    outlived = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in outlived:
        process.kill()
    assert not outlived
