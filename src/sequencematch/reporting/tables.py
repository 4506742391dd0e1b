"""What the report calls arms and ways of decoding, its main table, and the sentence that the numbers bear out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

ARM_NAMES = {
    "mle": "MLE",
    "bc": "BC with deletions",
    "sequencematch": "SequenceMatch (chi2-mixture, rollouts)",
    "sequencematch_lecam": "SequenceMatch (lecam)",
}
"""Arms in their order, as people read them."""

MODE_NAMES = {
    "sampled": "Sampled, T\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1",
    "sampled_no_deletion": "Sampled, deletion forbidden",
    "greedy": "Greedy",
    "greedy_no_deletion": "Greedy, deletion forbidden",
    "greedy_exclude": "Greedy, exclude",
}
"""Ways of decoding in their order, as people read them."""

_SHORT_MODE_NAMES = {
    "sampled": "sampled\nT=1",
    "sampled_no_deletion": "sampled\nno del.",
    "greedy": "greedy",
    "greedy_no_deletion": "greedy\nno del.",
    "greedy_exclude": "greedy\nexclude",
}

ABSENT = "–"
"""Stands for a number that the results lack."""


@dataclass(frozen=True)
class Accuracy:
    """An accuracy and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        """The interval as text."""
        return f"[{self.low:.3f}, {self.high:.3f}]"

    @property
    def short_interval(self) -> str:
        """The interval in at most seven characters: `.94–.99`."""
        ends = (f"{end:.2f}".removeprefix("0") for end in (self.low, self.high))
        return "–".join({".00": "0", "1.00": "1"}.get(end, end) for end in ends)


@dataclass(frozen=True)
class Row:
    """One arm's line of the main table."""

    arm: str
    """The arm's key in the results."""
    name: str
    accuracies: dict[str, Accuracy | None]
    """By mode; None where the arm has no such measurement."""
    deletion_rate: str
    """Of the sampled answers, as are `actions`."""
    actions: str
    time: str
    """Of training, as are `steps`."""
    seconds: str
    """The same in seconds."""
    steps: str
    questions: int | None
    """Number of test questions of the sampled accuracy."""


def check_results(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tasks of a demo's results. Raises InputError if there are none."""
    tasks = results.get("tasks") if isinstance(results, Mapping) else None
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError("the results have no 'tasks' to report; pass the dictionary that the demo writes")
    return tasks


def ordered_arms(task: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A task's arms: the known ones in their order, then any others as they come."""
    arms = task.get("arms") or {}
    known = [arm for arm in ARM_NAMES if arm in arms]
    return {arm: arms[arm] or {} for arm in (*known, *(arm for arm in arms if arm not in ARM_NAMES))}


def main_rows(task: Mapping[str, Any]) -> list[Row]:
    """The main table of a task, one row per arm."""
    return [_row(arm, result) for arm, result in ordered_arms(task).items()]


def main_modes(rows: list[Row]) -> list[str]:
    """The ways of decoding that any of the arms was measured with."""
    return [mode for mode in MODE_NAMES if any(row.accuracies[mode] for row in rows)]


def best_arm(rows: list[Row]) -> str | None:
    """The arm with the highest sampled accuracy, if it is above MLE and their intervals are disjoint."""
    measured = [(row.accuracies["sampled"], row.arm) for row in rows]
    scores = [(score, arm) for score, arm in measured if score is not None]
    baseline = next((score for score, arm in scores if arm == "mle"), None)
    if baseline is None:
        return None
    best, arm = max(scores, key=lambda pair: pair[0].value)
    return arm if best.low > baseline.high else None


def cost(task: Mapping[str, Any]) -> str:
    """How long on-policy training took, rollouts included, against MLE with as many steps; empty if unknown."""
    arms = ordered_arms(task)
    policy, plain = (arms.get(arm, {}) for arm in ("sequencematch", "mle"))
    if not (policy.get("seconds") and plain.get("seconds") and policy.get("steps") == plain.get("steps")):
        return ""
    return (
        f"On-policy training, rollouts included, took {policy['seconds'] / plain['seconds']:.2f} times as long as MLE "
        "with as many steps."
    )


def finding(rows: list[Row]) -> str:
    """What the sampled accuracies and their intervals say of the arms against MLE, as one or two sentences."""
    scores = {row.name: row.accuracies["sampled"] for row in rows if row.arm != "mle"}
    baseline = next((row.accuracies["sampled"] for row in rows if row.arm == "mle"), None)
    if baseline is None:
        return "There is no MLE arm under sampling to compare with."
    above = [name for name, score in scores.items() if score is not None and score.low > baseline.high]
    below = [name for name, score in scores.items() if score is not None and score.high < baseline.low]
    sentences = [
        f"{_join(names)} {'is' if len(names) == 1 else 'are'} {where} MLE under sampling with disjoint 95% intervals."
        for names, where in ((above, "above"), (below, "below"))
        if names
    ]
    return " ".join(sentences) or "Under sampling, no arm's 95% interval is disjoint from MLE's."


def duration(seconds: Any) -> str:
    """A wall time as people read it."""
    if not isinstance(seconds, int | float):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def demo_tables(results: Mapping[str, Any]) -> list[Table]:
    """One table per task for the terminal, with the report's main columns.

    Raises InputError if the results have no tasks.
    """
    return [_task_table(name, task) for name, task in check_results(results).items()]


def _task_table(name: str, task: Mapping[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows = main_rows(task)
    modes = main_modes(rows)
    best = best_arm(rows)
    table = Table(
        title=Text(str(task.get("title", name)), style="bold"),
        caption=Text(f"accuracy and its 95% interval\n{finding(rows)}\n{cost(task)}"),
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("arm", overflow="fold")
    for heading in (*(_SHORT_MODE_NAMES[mode] for mode in modes), "del.\nrate", "actions", "train\ntime", "steps"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row.arm == best else ""
        cells = [Text(row.name, style=style)]
        for mode in modes:
            accuracy = row.accuracies[mode]
            cells.append(Text(f"{accuracy.value:.3f}\n{accuracy.short_interval}" if accuracy else ABSENT))
            if mode == "sampled":
                cells[-1].stylize(style)
        cells += [Text(text) for text in (row.deletion_rate, row.actions, row.seconds, row.steps)]
        table.add_row(*cells)
    return table


def _row(arm: str, result: Mapping[str, Any]) -> Row:
    sampled = result.get("sampled") or {}
    rate, actions = sampled.get("deletion_rate"), sampled.get("actions")
    seconds, steps = result.get("seconds"), result.get("steps")
    return Row(
        arm=arm,
        name=ARM_NAMES.get(arm, arm),
        accuracies={mode: _accuracy(result.get(mode)) for mode in MODE_NAMES},
        deletion_rate=ABSENT if rate is None else f"{100 * rate:.1f}%",
        actions=ABSENT if actions is None else f"{actions:.1f}",
        time=duration(seconds),
        seconds=ABSENT if seconds is None else f"{seconds:.0f} s",
        steps=ABSENT if steps is None else f"{steps:,}",
        questions=sampled.get("n"),
    )


def _accuracy(score: Mapping[str, Any] | None) -> Accuracy | None:
    if not score or score.get("accuracy") is None:
        return None
    value = float(score["accuracy"])
    return Accuracy(value, float(score.get("low", value)), float(score.get("high", value)))


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
