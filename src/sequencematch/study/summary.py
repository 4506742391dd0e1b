"""Results over seeds, and each cell against the baseline on the same questions."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas

from ..evaluation.statistics import adjust, paired_difference, paired_seeds, seed_interval

if TYPE_CHECKING:
    from .spec import Cell, Study

ENOUGH_SEEDS = 3
"""From so many on, differences between seeds say more than differences between questions."""


def summaries(study: Study, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and 95% interval of every metric of each cell and way of decoding.

    With several seeds the interval is over them (Student's t); with one it is over questions, where there is one.
    """
    found: dict[tuple[str, str, str], list[tuple[float, list[float] | None]]] = {}
    for entry in results:
        for metric, value in entry["metrics"].items():
            key = (entry["cell"], entry["decoding"], metric)
            found.setdefault(key, []).append((value, entry["intervals"].get(metric)))
    rows = []
    for (cell, decoding, metric), values in found.items():
        where = {"cell": cell, "decoding": decoding, "metric": metric, "seeds": len(values)}
        numbers = [value for value, _ in values]
        over_seeds = seed_interval(numbers)
        low, high = (over_seeds.low, over_seeds.high) if len(numbers) > 1 else values[0][1] or (None, None)
        rows.append({**where, "mean": over_seeds.estimate, "low": low, "high": high})
    return rows


def comparisons(
    study: Study, cells: list[Cell], results: list[dict[str, Any]], questions: pandas.DataFrame
) -> list[dict[str, Any]]:
    """The difference of every cell's main metrics from the baseline's, from the same seeds and on the same questions.

    The unit is the seed (paired t test): what another training run would have given. Accuracy from fewer than
    ENOUGH_SEEDS has the question as its unit (paired permutation test): what other questions would have given with
    these very models. p values are adjusted for all comparisons of the study (Benjamini-Hochberg). One that another way
    of decoding only repeats, for it is of the model itself or differs in deletions that there are none of, counts once.
    """
    by_question = "accuracy" in study.evaluation.main and len(study.seeds) < ENOUGH_SEEDS
    scores = questions.pivot_table("score", ["cell", "decoding", "seed"], "question") if by_question else None
    values: dict[tuple, float] = {
        (entry["cell"], entry["decoding"], metric, entry["seed"]): value
        for entry in results
        for metric, value in entry["metrics"].items()
    }

    def compare(cell: str, decoding: str, metric: str) -> tuple[tuple, dict[str, Any]] | None:
        """What is compared, and how it compares."""
        names = (cell, study.baseline)
        if scores is not None and metric == "accuracy":
            both = [scores.loc[name, decoding].to_numpy() for name in names]
            what = tuple(side.tobytes() for side in both)
            return what, {"unit": "questions", **asdict(paired_difference(*both))}
        sides = ([(name, decoding, metric, seed) for seed in study.seeds] for name in names)
        one, other = (tuple(values[key] for key in side if key in values) for side in sides)
        if len(study.seeds) < 2 or not len(one) == len(other) == len(study.seeds):
            return None
        return (one, other), {"unit": "seeds", **asdict(paired_seeds(one, other))}

    rows, distinct = [], {}
    for metric, decoding, cell in product(study.evaluation.main, study.decoding, cells):
        if cell.name == study.baseline or (found := compare(cell.name, decoding, metric)) is None:
            continue
        numbers, outcome = found
        what = (cell.name, metric, numbers)
        distinct[what] = outcome["p"]
        where = {"cell": cell.name, "decoding": decoding, "metric": metric, "baseline": study.baseline}
        rows.append((what, {**where, **outcome}))
    adjusted = dict(zip(distinct, adjust(list(distinct.values())), strict=True)) if rows else {}
    return [{**row, "p_adjusted": adjusted[what]} for what, row in rows]
