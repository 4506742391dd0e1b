"""Names and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "–"
"""Stands for a number that the results lack."""


@dataclass(frozen=True)
class Metric:
    """How a metric is read."""

    title: str
    form: str
    """`share` (three digits of 0 to 1), `percent` (of a share), or a format specification."""
    better: int = 0
    """1 if more is better, -1 if less is, 0 if neither."""

    @property
    def is_share(self) -> bool:
        """Whether it lies between 0 and 1."""
        return self.form in ("share", "percent")


METRICS = {
    "accuracy": Metric("Accuracy", "share", 1),
    "mauve": Metric("MAUVE", "share", 1),
    "deletion_rate": Metric("Deletion rate", "percent"),
    "actions": Metric("Actions per answer", ".1f"),
    "mean_run": Metric("Deletions in a row", ".2f"),
    "length": Metric("Length", ".1f"),
    "truncated": Metric("Truncated", "percent", -1),
    "deletes_wrong": Metric("P(deletion | wrong token)", "share", 1),
    "deletes_right": Metric("P(deletion | right token)", "share", -1),
    "precision": Metric("Precision of deletions", "share", 1),
    "recall": Metric("Recall of planted errors", "share", 1),
    "improved": Metric("Improved by deleting", "percent", 1),
    "entropy": Metric("n-gram entropy", ".3f"),
    "diversity": Metric("Diversity", "share"),
    "repetition": Metric("Repetition", "share", -1),
    "distinct_2": Metric("Distinct bigrams", "share"),
    "perplexity": Metric("Perplexity", ".3f", -1),
    "perplexity_no_deletion": Metric("Perplexity, no deletion", ".3f", -1),
    "seconds": Metric("Decoding time (s)", ".1f"),
}
"""Known metrics, in the order in which tables have them."""


def metric_of(name: str) -> Metric:
    """How a metric is read; one that is not known goes by its name."""
    return METRICS.get(name) or Metric(capitalised(plain(name)), ".4g")


def number(metric: str, value: float) -> str:
    """A metric's value as text."""
    form = metric_of(metric).form
    text = f"{100 * value:.1f}%" if form == "percent" else format(value, ".3f" if form == "share" else form)
    return text.replace("-", "−")


def difference(metric: str, value: float) -> str:
    """A difference of two values of a metric, with its sign."""
    return f"{'+' if value >= 0 else ''}{number(metric, value)}"


def interval(metric: str, low: float | None, high: float | None) -> str:
    """An interval as `[0.932, 0.971]`; empty if there is none."""
    return "" if low is None or high is None else f"[{number(metric, low)}, {number(metric, high)}]"


def p_value(p: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def decimal(value: float) -> str:
    """Any number in few characters."""
    return f"{value:,.4g}".replace("-", "−")


def plain(value: Any) -> str:
    """An option's name or value without its code: `noise_rate` -> `noise rate`."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("_", " ")


def capitalised(text: str) -> str:
    """The text with a capital first letter, and the rest as it is."""
    return text[:1].upper() + text[1:]


def decoding_title(name: str) -> str:
    """A way of decoding as people read it: `greedy_no_deletion` -> `Greedy, no deletion`."""
    return capitalised(plain(name.replace("_no_", ", no_")))


def decoding_description(options: Mapping[str, Any]) -> str:
    """What a way of decoding does, from its options."""
    words = []
    for name, value in options.items():
        if name == "temperature":
            words.append("always the likeliest action" if value == 0 else f"drawn at temperature {plain(value)}")
        elif (name, value) == ("allow_backspace", False):
            words.append("deletions switched off")
        elif (name, value) == ("retry", "exclude"):
            words.append("a deleted attempt is barred where it began, so that nothing is tried twice")
        else:
            words.append(f"{plain(name)} {plain(value)}")
    return "; ".join(words) or "as the model was configured"


def duration(seconds: float | None) -> str:
    """A wall time as people read it."""
    if seconds is None:
        return ABSENT
    if round(seconds) < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def count(amount: int, singular: str, plural: str | None = None) -> str:
    """`1 seed`, `3,000 questions`."""
    return f"{amount:,} {singular if amount == 1 else plural or singular + 's'}"
