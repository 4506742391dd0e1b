"""The report of studies: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import InputError
from ..files import write_whole
from .charts import LINE_SPACE, whisker_panels
from .costs import budget_charts, frontier, training_chart
from .curves import BACKSPACE, LEARNING, curve_charts
from .factors import factor_charts, heat_tables
from .findings import findings, headline
from .groups import group_tables
from .heat import LEVELS
from .loading import find_studies, load_study
from .replays import browse
from .rows import all_scores, main_rows, measured_metrics
from .study import SIGNIFICANT, StudyResults
from .styles import COLOURS
from .wording import count, decoding_description, decoding_title, duration, metric_of

T = TypeVar("T")


def write_report(folders: Sequence[Path], path: Path) -> None:
    """Write the results of studies to `path` as one self-contained HTML page, and make its folder if need be.

    Args:
        folders: what studies wrote to, or folders of such folders; a section for each study, in this order.
        path: the page. It is there whole or not at all; one that was there before is replaced.

    Raises InputError if there are no results in a folder or they are damaged, or if the page cannot be written.
    """
    found = [folder for given in folders for folder in find_studies(given)]
    page = render([load_study(folder) for folder in dict.fromkeys(found)])
    _write(Path(path), page)


def render(studies: Sequence[StudyResults]) -> str:
    """The page of some studies."""
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"line_space": LINE_SPACE, "levels": LEVELS, "colours": COLOURS, "count": count}
    return environment.get_template("report.html.j2").render(studies=[_view(study) for study in studies])


def _view(study: StudyResults) -> dict[str, Any]:
    """What the template needs of a study."""
    rows = main_rows(study)
    whiskers = whisker_panels(study, rows)
    learning, backspace = (curve_charts(study, rows, series) for series in (LEARNING, BACKSPACE))
    first_factors, more_factors = _by_decoding(study, factor_charts)
    first_heat, more_heat = _by_decoding(study, heat_tables)
    groups = group_tables(study, rows)
    return {
        "title": study.title,
        "description": study.description,
        "meta": _meta(study),
        "headline": headline(study),
        "findings": findings(study),
        "baseline": study.baseline,
        "metric": metric_of(study.metric).title,
        "rows": rows,
        "others": len(study.cells) - len(rows),
        "decodings": {name: decoding_title(name) for name in study.measured_decodings()},
        "ways": {decoding_title(name): decoding_description(options) for name, options in study.decodings.items()},
        "spread": _spread(study),
        "threshold": SIGNIFICANT,
        "compared": bool(study.comparisons),
        "metrics": [metric_of(name).title for name in measured_metrics(study)],
        "all_scores": [(cell, decoding_title(name), scores) for cell, name, scores in all_scores(study)],
        "whiskers": whiskers,
        "faint": any(whisker.seeds for panel in whiskers for whisker in panel.whiskers),
        "factors": first_factors,
        "heat": first_heat,
        "more_factors": more_factors,
        "more_heat": more_heat,
        "budgets": budget_charts(study, rows),
        "frontier": frontier(study),
        "training": training_chart(study, rows),
        "learning": learning,
        "backspace": backspace,
        "groups": groups[:1],
        "more_groups": groups[1:],
        "browser": browse(study, rows),
        "facts": {heading: facts for heading, facts in study.facts.items() if facts},
        "run": _run_facts(study),
        "config": json.dumps(study.config, indent=2, ensure_ascii=False, default=str),
    }


def _by_decoding(study: StudyResults, make: Callable[[StudyResults, str], list[T]]) -> tuple[list[T], list[T]]:
    """What there is under the main way of decoding, and under the others."""
    first, *others = study.decodings
    return make(study, first), [one for decoding in others for one in make(study, decoding)]


def _spread(study: StudyResults) -> str:
    """What the intervals of the main metric are over."""
    seeds = {found.seeds for (_, _, metric), found in study.estimates.items() if metric == study.metric}
    most = max(seeds, default=0)
    if most > 1:
        return f"over {count(most, 'seed')}"
    return f"over {count(study.questions, 'question')}" if study.questions else "over questions"


def _meta(study: StudyResults) -> list[str]:
    parts = [
        f"{study.budget} per run" if study.budget else "",
        count(len(study.seeds), "seed") if study.seeds else "",
        count(len(study.cells), "cell"),
        count(study.questions, "question") if study.questions else "",
    ]
    return [part for part in parts if part]


def _run_facts(study: StudyResults) -> dict[str, str]:
    facts = {
        "date": study.date,
        "time": "" if study.seconds is None else duration(study.seconds),
        "budget of a run": study.budget,
        "seeds": ", ".join(map(str, study.seeds)),
        "questions": f"{study.questions:,}" if study.questions else "",
    }
    return {name: value for name, value in facts.items() if value}


def _write(path: Path, page: str) -> None:
    try:
        write_whole(path, page)
    except OSError as error:
        raise InputError(f"the report '{path}' cannot be written ({error.strerror}); choose another file") from error
