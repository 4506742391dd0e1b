"""A study's results as tidy files, which `sequencematch report` reads.

study.json         what was studied, how and on what
results.jsonl      metrics of each cell, seed and way of decoding, with intervals over questions
summary.jsonl      the same over seeds
comparisons.jsonl  each cell against the baseline
runs.jsonl         steps, seconds, tokens and learning curve of each cell and seed
questions.parquet  every question's score, actions, deletions and length
transcripts.jsonl  completions of the first seed, action by action
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas

from ..files import write_whole
from .environment import joined
from .runs import Job
from .spec import Cell, Study
from .summary import comparisons, summaries

Jobs = Mapping[tuple[str, int], Job]
"""`(cell's name, seed)` -> its job."""


def write_results(study: Study, cells: list[Cell], jobs: Jobs, folder: Path, seconds: float) -> None:
    """Write all files of a study whose jobs are done."""
    results, runs, questions, transcripts = [], [], [], []
    for (cell, seed), job in jobs.items():
        runs.append({"cell": cell, "seed": seed, **job.load_run()})
        model = job.load_evaluation(None)
        for decoding in study.decoding:
            where = {"cell": cell, "seed": seed, "decoding": decoding}
            found = job.load_evaluation(decoding)
            both = {name: found[name] | model[name] for name in ("metrics", "intervals")}
            results.append({**where, **both, "histograms": found["histograms"]})
            questions.append(
                pandas.DataFrame(found["questions"])
                .astype({"score": float})
                .rename_axis("question")
                .reset_index()
                .assign(**where)
            )
            if seed == study.seeds[0]:
                transcripts.append({**where, "items": found["transcripts"]})
    table = pandas.concat(questions, ignore_index=True)
    about = _about(study, cells, runs, len(table["question"].unique()), seconds)
    rows = {
        "results": results,
        "summary": summaries(study, results),
        "comparisons": comparisons(study, cells, results, table),
        "runs": runs,
        "transcripts": transcripts,
    }
    for name, lines in rows.items():
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_whole(folder / "questions.parquet", table.to_parquet(index=False))
    write_whole(folder / "study.json", json.dumps(about))


def _about(study: Study, cells: list[Cell], runs: list[dict], questions: int, seconds: float) -> dict[str, Any]:
    config = study.as_dict()
    return {
        **{name: config[name] for name in ("name", "title", "description", "baseline", "titles", "budget", "seeds")},
        "decodings": config["decoding"],
        "cells": [{"cell": cell.name, "arm": cell.arm, "factors": dict(cell.factors)} for cell in cells],
        "metrics": study.evaluation.main,
        "questions": questions,
        **joined(run["environment"] for run in runs),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": seconds,
        "config": config,
    }
