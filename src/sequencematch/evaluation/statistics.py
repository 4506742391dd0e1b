"""Intervals and tests: over questions by resampling them, over a handful of seeds by Student's t.

Every interval is at 95%. What is random is drawn from a generator of the call's own `seed`, so a result is always the
same and nobody else's random numbers are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError, reason_of

CONFIDENCE = 0.95
"""Of every interval."""
RESAMPLES = 9999
"""Bootstrap resamples, and random sign flips of a permutation test: the smallest p is 0.0002."""

_NUMBERS_AT_ONCE = 2**22
"""Of the numbers drawn, how many are held at a time."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval."""

    estimate: float
    """The mean, share or ratio."""
    low: float
    """Lower end of the interval; nan where a single value gives none."""
    high: float
    """Upper end of it."""
    n: int
    """How many questions or seeds it rests on."""


@dataclass(frozen=True)
class Comparison:
    """How two ways of doing the same thing differ."""

    difference: float
    """The mean of a less the mean of b."""
    low: float
    """Lower end of the difference's 95% interval; nan where a single pair gives none."""
    high: float
    """Upper end of it."""
    p: float
    """Two-sided p value of there being no difference."""


def mean_interval(values: ArrayLike, *, seed: int = 0) -> Interval:
    """The mean over questions, float [questions], with its BCa bootstrap interval (Efron 1987).

    Equal values give an interval of no width, one value an interval of nan. For shares near 0 or 1, where a sample
    may have no failure in it, `proportion_interval` knows more.

    Raises InputError for values that are empty or not finite.
    """
    found = _finite(values, 1)
    return _bootstrap((found,), np.mean, _is_constant(found), seed)


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike, *, seed: int = 0) -> Interval:
    """The ratio of the sums over questions, float [questions] each, with its BCa bootstrap interval.

    Questions are resampled with both of their numbers, so the interval holds for means over tokens or over deletions
    that come in unequal numbers from each question. A question with nothing to divide by (0 of 0) is left out, and does
    not count in `n`.

    Raises InputError for unequal shapes, values that are empty or not finite, denominators that are negative or all 0,
    and a numerator that has 0 to divide it by.
    """
    top, bottom = _finite(numerators, 1), _finite(denominators, 1)
    _check_shapes(top, bottom, "numerators and denominators")
    if (bottom < 0).any() or not bottom.any() or top[bottom == 0].any():
        raise InputError("a ratio needs denominators above 0; count what is divided by, for each question")
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    return _bootstrap((top, bottom), lambda x, y, axis: x.sum(axis) / y.sum(axis), _is_constant(top / bottom), seed)


def proportion_interval(successes: int, n: int) -> Interval:
    """A share of n questions with its Wilson interval (Wilson 1927), which is right near 0 and 1 too.

    Raises InputError unless 0 <= successes <= n and n > 0.
    """
    from scipy.stats import binomtest

    if not (0 <= successes <= n and n > 0):
        raise InputError(f"a share is of at least one question, and of no more than there are, not {successes} of {n}")
    interval = binomtest(int(successes), int(n)).proportion_ci(CONFIDENCE, "wilson")
    return Interval(successes / n, float(interval.low), float(interval.high), int(n))


def seed_interval(values: ArrayLike) -> Interval:
    """The mean over training seeds, float [seeds], with Student's t interval.

    Of a handful of values a bootstrap interval would be much too narrow. One seed has an interval of nan, and equal
    values have one of no width.

    Raises InputError for values that are empty or not finite.
    """
    found = _finite(values, 1)
    low, high = _t_interval(found)
    return Interval(float(found.mean()), low, high, len(found))


def paired_difference(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Comparison:
    """Compare two arms on the same questions in the same order: float [questions], or [seeds, questions].

    The question is the unit: scores are first averaged over seeds. The interval is the BCa bootstrap's over questions,
    and p that of the sign-flip permutation test (Fisher 1935): exact up to 13 questions that differ at all, and from
    RESAMPLES random flips beyond. Both say what other questions would have given with these trained models;
    `paired_seeds` says what other seeds would have given.

    Raises InputError for unequal shapes, and for scores that are empty or not finite.
    """
    difference = np.atleast_2d(_differences(a, b))
    interval = mean_interval(difference.mean(0), seed=seed)
    # Sums of right and wrong answers are whole numbers, so that ties are ties; means over 3 seeds would be rounded.
    return Comparison(interval.estimate, interval.low, interval.high, _sign_flip_p(difference.sum(0), seed))


def paired_seeds(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Compare two arms that were trained with the same seeds, by a paired t test: float [seeds], or [seeds, questions].

    The seed is the unit: scores are first averaged over questions. One seed has an interval and a p of nan. Equal
    differences are the test's limit: p is 1 if they are 0, and 0 if they are not.

    Raises InputError for unequal shapes, and for scores that are empty or not finite.
    """
    from scipy.stats import ttest_1samp

    difference = _differences(a, b)
    if difference.ndim == 2:
        difference = difference.mean(1)
    low, high = _t_interval(difference)
    if len(difference) == 1:
        p = np.nan
    elif _is_constant(difference):
        p = float(not difference.any())
    else:
        p = float(ttest_1samp(difference, 0).pvalue)
    return Comparison(float(difference.mean()), low, high, p)


def adjust(p_values: Sequence[float]) -> list[float]:
    """p values of several comparisons, adjusted for their number by Benjamini and Hochberg (1995), in the same order.

    Of the comparisons whose adjusted p is below q, at most a share q is expected to be false: the false discovery rate.
    That holds where the tests are independent or positively dependent, such as those of several arms against one
    baseline. It does not bound the probability of any false claim at all, as Holm's would.

    Raises InputError for no p values, or any outside 0 to 1.
    """
    from scipy.stats import false_discovery_control

    found = _finite(p_values, 1)
    if found.min() < 0 or found.max() > 1:
        raise InputError("p values lie between 0 and 1; leave out comparisons that have none")
    return [float(p) for p in false_discovery_control(found, method="bh")]


def _bootstrap(data: tuple[np.ndarray, ...], statistic: Callable[..., Any], constant: bool, seed: int) -> Interval:
    """`statistic` of arrays float [n] with a place for each question; no resample changes it if it is `constant`."""
    from scipy.stats import bootstrap

    estimate, n = float(statistic(*data, axis=-1)), len(data[0])
    if n == 1:
        return Interval(estimate, np.nan, np.nan, 1)
    if constant:
        return Interval(estimate, estimate, estimate, n)
    found = bootstrap(
        data,
        statistic,
        paired=len(data) > 1,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="BCa",
        batch=max(_NUMBERS_AT_ONCE // n, 1),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), n)


def _sign_flip_p(differences: np.ndarray, seed: int) -> float:
    """Two-sided p value of float [questions] being symmetric around 0, by their sum."""
    from scipy.stats import monte_carlo_test, permutation_test

    differences = differences[differences != 0]  # flipping a 0 changes nothing
    n, rng = len(differences), np.random.default_rng(seed)
    if n < 2:
        return 1.0
    if 2**n <= RESAMPLES:
        exact = permutation_test(
            (differences,), np.sum, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES
        )
        return float(exact.pvalue)

    def flipped(size: tuple[int, ...]) -> np.ndarray:
        return np.where(rng.integers(2, size=size, dtype=np.uint8), differences, -differences)

    # As permutation_test does it, in a fifth of the time.
    found = monte_carlo_test(
        differences, flipped, np.sum, vectorized=True, n_resamples=RESAMPLES, batch=max(_NUMBERS_AT_ONCE // n, 1)
    )
    return float(found.pvalue)


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    from scipy.stats import t

    if len(values) == 1:
        return np.nan, np.nan
    half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _is_constant(values: np.ndarray) -> bool:
    """Whether values differ by no more than rounding."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _differences(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """a - b, float [questions] or [seeds] or [seeds, questions]; 0 where they differ by no more than rounding."""
    one, other = _finite(a, 2), _finite(b, 2)
    _check_shapes(one, other, "the scores of the two arms")
    return np.where(np.isclose(one, other, rtol=1e-12, atol=0), 0.0, one - other)


def _check_shapes(one: np.ndarray, other: np.ndarray, what: str) -> None:
    if one.shape != other.shape:
        raise InputError(f"{what} have shapes {one.shape} and {other.shape}; give the same questions in the same order")


def _finite(values: ArrayLike, most_dimensions: int) -> np.ndarray:
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"statistics are of numbers, in rows of one length: {reason_of(error)}") from error
    if not (1 <= found.ndim <= most_dimensions and found.size and np.isfinite(found).all()):
        raise InputError(
            f"statistics need at least one number, in {most_dimensions} dimensions at most, and all of them finite; "
            "leave out what was not measured"
        )
    return found
