"""Folders of results as a study writes them, made up but consistent: `python study_folders.py FOLDER` writes two.

`star_study` has four arms, three seeds, groups, curves and transcripts; `grid_study` varies a numeric factor over a
categorical one, and two numeric factors crossed, with one seed.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas
from scipy.stats import t as student

DECODINGS = {
    "sampled": {"temperature": 1.0},
    "sampled_no_deletion": {"temperature": 1.0, "allow_backspace": False},
    "greedy": {"temperature": 0.0},
    "greedy_no_deletion": {"temperature": 0.0, "allow_backspace": False},
    "greedy_exclude": {"temperature": 0.0, "retry": "exclude"},
}
TITLES = {
    "mle": "MLE",
    "bc": "BC with deletions",
    "sequencematch": "SequenceMatch (chi2-mixture, rollouts)",
    "sequencematch_lecam": "SequenceMatch (lecam)",
}
STAR = {
    "mle": (0.34, 0.34, 0.35, 0.35, 0.35),
    "bc": (0.93, 0.35, 0.55, 0.36, 0.96),
    "sequencematch": (0.96, 0.36, 0.60, 0.35, 0.99),
    "sequencematch_lecam": (0.91, 0.28, 0.42, 0.25, 0.97),
}


def star_study(folder):
    """Write the results of a study of arms alone."""
    cells = [{"cell": arm, "arm": arm, "factors": {}} for arm in STAR]
    accuracy = {
        (arm, name): value for arm, values in STAR.items() for name, value in zip(DECODINGS, values, strict=True)
    }
    about = {
        "name": "star",
        "title": "Star graphs",
        "description": "A prompt lists the edges of a star with three arms, then the start and the goal; the "
        "completion is the path. That an arm was wrong shows at its end, where <reset> takes it back.",
        "budget": {"unit": "steps", "amount": 1000},
        "decodings": DECODINGS,
    }
    write_study(Path(folder), about, cells, accuracy, (0, 1, 2), ("two arms", "three arms", "ten arms"))


def grid_study(folder):
    """Write the results of a study that varies factors."""
    cells = [{"cell": arm, "arm": arm, "factors": {}} for arm in STAR if arm != "bc"]
    for arm, source, rate in itertools.product(list(STAR)[2:], ("model", "uniform"), (0.01, 0.1, 0.3, 1.0)):
        cells.append({"arm": arm, "factors": {"noise_source": source, "noise_rate": rate}})
    for alpha, gamma in itertools.product((0.001, 0.01, 0.1), (0.9, 0.99, 0.998)):
        cells.append({"arm": "sequencematch", "factors": {"alpha": alpha, "gamma": gamma}})
    decodings = {name: DECODINGS[name] for name in ("sampled", "greedy_exclude")}
    accuracy = {}
    for cell in cells:
        factors = cell["factors"]
        cell["cell"] = ", ".join([cell["arm"], *(f"{name}={value}" for name, value in factors.items())])
        gain = 0.05 * np.log10(factors.get("noise_rate", 0.1) / 0.01) - 0.08 * abs(
            np.log10(factors.get("alpha", 0.01) / 0.01)
        )
        gain += 0.1 * (factors.get("gamma", 0.99) - 0.9) + 0.03 * (factors.get("noise_source") == "model")
        for shift, name in enumerate(decodings):
            accuracy[cell["cell"], name] = 0.74 if cell["arm"] == "mle" else min(0.99, 0.73 + gain + 0.05 * shift)
    about = {
        "name": "arithmetic",
        "title": "Arithmetic in a base",
        "description": "Addition and subtraction of two-digit numbers in bases 5 to 7.",
        "budget": {"unit": "seconds", "amount": 120.0},
        "decodings": decodings,
        "config": {"options": {"noise_source": "model", "noise_rate": 0.5, "alpha": 0.01, "gamma": 0.99}, "arms": {}},
    }
    write_study(Path(folder), about, cells, accuracy, (0,), ("base 10", "base 9"))


def write_lines(path, lines):
    """Write a file of JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path):
    """What `write_lines` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_study(folder, about, cells, accuracy, seeds, groups):
    """Write a study with so high accuracies by `(cell, way of decoding)`; the baseline is the arm `mle`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    questions = _questions(accuracy, seeds, groups, rng)
    questions.to_parquet(folder / "questions.parquet", index=False)
    results = [
        {"cell": cell, "seed": int(seed), "decoding": decoding, "metrics": _metrics(part), "intervals": {}}
        for (cell, seed, decoding), part in questions.groupby(["cell", "seed", "decoding"], sort=False)
    ]
    write_lines(folder / "results.jsonl", results)
    write_lines(folder / "summary.jsonl", _summary(results))
    write_lines(folder / "comparisons.jsonl", _comparisons(questions, "mle", about["decodings"]))
    write_lines(
        folder / "runs.jsonl",
        [_run(index, cell["cell"], seed, rng) for index, cell in enumerate(cells) for seed in seeds],
    )
    write_lines(folder / "transcripts.jsonl", _transcripts(cells, about["decodings"], rng))
    common = {
        "baseline": "mle",
        "titles": TITLES,
        "seeds": list(seeds),
        "cells": cells,
        "metrics": ["accuracy"],
        "questions": int(questions["question"].nunique()),
        "versions": {"sequencematch": "0.1.0", "torch": "2.99.1"},
        "hardware": {"processor": "one of a kind", "cores": 2},
        "date": "2026-03-14 15:09 UTC",
        "seconds": 1312.4,
        "config": {"arms": {cell["arm"]: {"objective": cell["arm"]} for cell in cells}},
    }
    (folder / "study.json").write_text(json.dumps({**common, **about}))


def _questions(accuracy, seeds, groups, rng, number=240):
    parts = []
    for (cell, decoding), share in accuracy.items():
        for seed in seeds:
            deletes = "no_deletion" not in decoding and not cell.startswith("mle")
            deletions = rng.geometric(0.45, number) - 1 if deletes else np.zeros(number, int)
            luck = share + 0.02 * rng.standard_normal()
            parts.append(
                pandas.DataFrame(
                    {
                        "cell": cell,
                        "seed": seed,
                        "decoding": decoding,
                        "question": np.arange(number),
                        "group": [groups[index % len(groups)] for index in range(number)],
                        "score": (rng.random(number) < luck).astype(float),
                        "actions": 4 + 4 * deletions,
                        "deletions": deletions,
                        "length": 3,
                    }
                )
            )
    return pandas.concat(parts, ignore_index=True)


def _metrics(part):
    return {
        "accuracy": part["score"].mean(),
        "deletion_rate": part["deletions"].sum() / part["actions"].sum(),
        "actions": part["actions"].mean(),
        "length": 3.0,
        "truncated": 0.0,
        "seconds": 1.5,
        "perplexity": 1.2 + (1 - part["score"].mean()),
    }


def _summary(results):
    values = {}
    for line in results:
        for metric, value in line["metrics"].items():
            values.setdefault((line["cell"], line["decoding"], metric), []).append(value)
    for (cell, decoding, metric), found in values.items():
        reach = 0.03
        if len(found) > 1:
            reach = student.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / np.sqrt(len(found))
        mean = float(np.mean(found))
        ends = {"low": max(0.0, mean - reach), "high": mean + reach}
        if metric == "accuracy":
            ends["high"] = min(1.0, ends["high"])
        yield {"cell": cell, "decoding": decoding, "metric": metric, "mean": mean, **ends, "seeds": len(found)}


def _comparisons(questions, baseline, decodings):
    means = questions.groupby(["cell", "decoding"])["score"].mean()
    for cell, decoding in means.index:
        if cell != baseline:
            difference = means[cell, decoding] - means[baseline, decoding]
            p = float(min(1.0, np.exp(-60 * abs(difference))))
            ends = {"low": difference - 0.03, "high": difference + 0.03, "p": p, "p_adjusted": min(1.0, 2 * p)}
            where = {"cell": cell, "decoding": decoding, "metric": "accuracy", "baseline": baseline}
            yield {**where, "difference": difference, **ends}


def _run(index, cell, seed, rng):
    steps = np.arange(25, 1001, 25)
    learnt = 1 - np.exp(-steps / (200 + 60 * index))
    curve = [
        {
            "step": int(step),
            "loss": 2.2 - share + 0.05 * rng.standard_normal(),
            "objective/bc": 1.5 - share + 0.02 * rng.standard_normal(),
            "objective/expert_reward_mean": -2 + 1.6 * share,
            **(
                {}
                if cell.startswith("mle")
                else {
                    "backspace/rate": 0.3 * share + 0.01 * rng.random(),
                    "backspace/after_wrong": 0.9 * share,
                    "backspace/after_right": 0.1 * (1 - share),
                }
            ),
        }
        for step, share in zip(steps, learnt, strict=True)
    ]
    return {
        "cell": cell,
        "seed": seed,
        "steps": 1000,
        "seconds": 70.0 + 9 * index + seed,
        "tokens": 10**6,
        "curve": curve,
    }


def _transcripts(cells, decodings, rng, number=14):
    for cell in cells:
        for decoding in decodings:
            deletes = "no_deletion" not in decoding and cell["arm"] != "mle"
            items = [_item(index, deletes and index % 3, rng) for index in range(number)]
            yield {"cell": cell["cell"], "seed": 0, "decoding": decoding, "items": items}


def _item(index, attempts, rng):
    right, wrong = "vwx", "hfq"
    texts = [(letter, "deleted") for _ in range(attempts) for letter in wrong + "R"]
    texts = [("<reset>", "deletion") if text == "R" else (text, fate) for text, fate in texts]
    answer = wrong if index % 4 == 3 else right
    pieces = [*texts, *((letter, "kept") for letter in answer), ("<eos>", "end")]
    scored = [
        {
            "text": text,
            "fate": fate,
            "reward": float(rng.normal(-3 if fate == "deleted" else 0.5)),
            "value": float(rng.normal(4, 2)),
        }
        for text, fate in pieces
    ]
    return {
        "prompt": f"en|hf|ew|q{index}=",
        "expected": right,
        "completion": answer,
        "correct": answer == right,
        "pieces": scored,
    }


if __name__ == "__main__":
    star_study(Path(sys.argv[1]) / "star")
    grid_study(Path(sys.argv[1]) / "arithmetic")
