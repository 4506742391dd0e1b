import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sequencematch import InputError
from sequencematch.evaluation import statistics
from sequencematch.evaluation.statistics import (
    adjust,
    mean_interval,
    paired_difference,
    paired_seeds,
    proportion_interval,
    ratio_interval,
    seed_interval,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def coverage(interval, draw, truth, rng, times):
    """The share of intervals that have the truth in them."""
    found = [interval(*draw(rng)) for _ in range(times)]
    return np.mean([one.low <= truth <= one.high for one in found])


def as_expected(share, times, at=0.95):
    """Whether a share of so many could well have been drawn with probability `at`."""
    return stats.binomtest(round(share * times), times, at).pvalue > 0.001


@pytest.fixture
def few_resamples(monkeypatch):
    """For simulations, where an interval's own randomness averages out."""
    monkeypatch.setattr(statistics, "RESAMPLES", 999)


def test_intervals_of_a_mean_cover_it(rng, few_resamples):
    # A bootstrap of 40 lacks the factor 40/39 in the variance and the t quantile: together 0.94.
    share = coverage(mean_interval, lambda rng: (3 + rng.normal(size=40),), 3, rng, 200)
    assert as_expected(share, 200, 0.94)


def test_intervals_of_a_ratio_cover_it(rng, few_resamples):
    """Of tokens that come in unequal numbers, the long texts being harder: the mean of ratios would be wrong."""

    def draw(rng):
        length = rng.integers(1, 20, size=60)
        return rng.gamma(length**1.5), length

    truth = np.mean(np.arange(1, 20) ** 1.5) / 10
    assert as_expected(coverage(ratio_interval, draw, truth, rng, 200), 200, 0.94)


def test_intervals_over_seeds_cover_the_mean(rng):
    assert as_expected(coverage(seed_interval, lambda rng: (rng.normal(2, 5, size=3),), 2, rng, 500), 500)


@pytest.mark.parametrize("share", [0.02, 0.06, 0.5])
def test_intervals_of_a_share_cover_it(share):
    """Over all that 200 questions can give; the usual p +- 1.96 s has 0.91 at 0.02."""
    found = [proportion_interval(right, 200) for right in range(201)]
    covered = [one.low <= share <= one.high for one in found]
    assert stats.binom.pmf(np.arange(201), 200, share)[covered].sum() == pytest.approx(0.95, abs=0.025)


def test_intervals_of_a_difference_cover_it(rng, few_resamples):
    """The arms share questions of very different difficulty: unpaired, every interval would cover."""

    def draw(rng):
        difficulty = rng.normal(0, 10, size=40)
        return difficulty + 0.5 + rng.normal(size=40), difficulty + rng.normal(size=40)

    assert as_expected(coverage(paired_difference, draw, 0.5, rng, 200), 200, 0.94)
    assert as_expected(coverage(paired_seeds, lambda rng: [x[:4] for x in draw(rng)], 0.5, rng, 500), 500)


def test_a_bootstrap_interval_is_near_the_normal_one(rng):
    values = rng.random(2000)
    found = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)
    assert found.n == 2000


def test_a_bootstrap_interval_leans_to_the_long_tail(rng):
    """As BCa has it: percentiles alone lean less, and the basic bootstrap leans the other way."""
    values = rng.exponential(size=30)
    reference = stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(5)).confidence_interval
    found = mean_interval(values)
    half = (found.high - found.low) / 2
    assert found.high - found.estimate > 1.2 * (found.estimate - found.low)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.05 * half)


def test_a_ratio_over_equal_denominators_is_a_mean(rng):
    values = rng.random(50)
    found, mean = ratio_interval(2 * values, np.full(50, 2)), mean_interval(values)
    assert (found.estimate, found.low, found.high) == pytest.approx((mean.estimate, mean.low, mean.high))


def test_nothing_to_divide_by_says_nothing(rng):
    top, bottom = rng.random(30), rng.integers(1, 5, size=30)
    padded = ratio_interval(np.concatenate([top, [0, 0]]), np.concatenate([bottom, [0, 0]]))
    assert padded == ratio_interval(top, bottom)
    assert padded.n == 30
    assert padded.estimate == pytest.approx(top.sum() / bottom.sum())


def test_seeds_by_hand():
    found = seed_interval([1, 2, 6])
    half = 4.302652729911275 * math.sqrt(7 / 3)
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx((3, 3 - half, 3 + half, 3))


@pytest.mark.parametrize(("right", "n"), [(0, 1), (30, 30), (17, 30), (1, 500)])
def test_shares_are_wilsons(right, n):
    found = proportion_interval(right, n)
    z, p = 1.959963984540054, right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert (found.estimate, found.n) == (p, n)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e-30, 1e30])
def test_equal_values_have_no_width(value):
    for found in (mean_interval([value] * 3), seed_interval([value] * 3), ratio_interval([value] * 3, [1] * 3)):
        assert (found.estimate, found.low, found.high) == pytest.approx((value, value, value), rel=1e-12)


def test_one_value_has_no_interval():
    for found in (mean_interval([0.5]), seed_interval([0.5]), ratio_interval([1, 0], [2, 0])):
        assert (found.estimate, found.n) == (0.5, 1)
        assert np.isnan([found.low, found.high]).all()
    found = paired_seeds([0.5], [0.25])
    assert found.difference == 0.25
    assert np.isnan([found.low, found.high, found.p]).all()
    assert paired_difference([0.5], [0.25]).p == 1


def exact_p(differences):
    """Two-sided p value of a sign-flip test, over every assignment of signs."""
    sums = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(differences))]
    return np.mean(np.abs(sums) >= abs(sum(differences)) - 1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
def test_p_of_few_questions_is_exact(n, rng):
    """However many more there are that do not differ."""
    for _ in range(5):
        differences = rng.integers(-2, 4, size=n) / 3
        padded = np.concatenate([differences, np.zeros(20)])
        assert paired_difference(padded, np.zeros(n + 20)).p == pytest.approx(exact_p(differences), abs=1e-12)


@pytest.mark.parametrize("scores", ["right or wrong", "real"])
def test_p_of_many_questions_is_near_the_exact_one(scores, rng):
    """14 that differ are past the exact ones: 16384 assignments, still few enough to go through here."""
    differences = rng.normal(0.4, 1, size=14) if scores == "real" else np.where(np.arange(14) < 10, 1.0, -1.0)
    padded = np.concatenate([differences, np.zeros(20)])  # on these both are right
    found = paired_difference(padded, np.zeros(34)).p
    expected = exact_p(differences)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected / statistics.RESAMPLES))
    assert found != expected


def test_p_is_that_of_permutation_test(rng):
    a, b = rng.normal(0.15, 1, size=(2, 200))
    a += 0.1
    found = paired_difference(a, b).p
    reference = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", vectorized=True, batch=1000, rng=np.random.default_rng(1)
    )
    assert found == pytest.approx(reference.pvalue, abs=0.03)
    assert 0.01 < found < 0.99


def test_p_is_uniform_without_a_difference(rng, few_resamples):
    found = [paired_difference(*rng.normal(size=(2, 20)), seed=seed).p for seed in range(150)]
    assert stats.kstest(found, "uniform").pvalue > 0.001
    found = [paired_seeds(*rng.normal(size=(2, 4))).p for _ in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_the_smallest_p(rng):
    assert paired_difference(rng.normal(5, 1, size=100), np.zeros(100)).p == pytest.approx(2 / 10000)


@pytest.mark.parametrize("compare", [paired_difference, paired_seeds])
def test_the_difference_has_the_sign_of_a_less_b(compare, rng):
    b = rng.normal(size=50)
    a = b + 1 + 0.1 * rng.normal(size=50)
    found, other = compare(a, b), compare(b, a)
    assert 0.9 < found.low < found.difference < found.high < 1.1
    assert found.p < 0.001
    assert other.difference == -found.difference
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=0.01)
    assert other.p == pytest.approx(found.p)


@pytest.mark.parametrize("compare", [paired_difference, paired_seeds])
def test_no_difference_at_all(compare):
    """Nor one that rounding makes."""
    found = compare([0.1 + 0.2, 0.5, 0.7], [0.3, 0.5, 0.7])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_equal_differences():
    found = paired_seeds([0.5, 0.75, 1.0], [0.25, 0.5, 0.75])
    assert (found.difference, found.low, found.high, found.p) == (0.25, 0.25, 0.25, 0)
    found = paired_difference([1, 1, 1, 1], [0, 0, 0, 0])
    assert (found.low, found.high, found.p) == (1, 1, 2 / 2**4)


def test_seeds_are_averaged_before_questions_are_compared(rng):
    a, b = rng.normal(size=(2, 3, 40))
    many, mean = paired_difference(a, b), paired_difference(a.mean(0), b.mean(0))
    assert many.p == pytest.approx(mean.p, abs=1e-12)
    assert (many.difference, many.low, many.high) == pytest.approx((mean.difference, mean.low, mean.high))


def test_questions_are_averaged_before_seeds_are_compared(rng):
    a, b = rng.normal(size=(2, 3, 40))
    found = paired_seeds(a, b)
    mean = paired_seeds(a.mean(1), b.mean(1))
    assert (found.difference, found.low, found.high, found.p) == pytest.approx(
        (mean.difference, mean.low, mean.high, mean.p)
    )
    reference = stats.ttest_rel(a.mean(1), b.mean(1))
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, reference.pvalue))


def test_adjusting_by_hand():
    """Benjamini and Hochberg: p m / rank, and no larger than that of any larger p."""
    assert adjust([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert adjust([0.02]) == [0.02]
    assert adjust([1.0, 1.0]) == [1, 1]


def test_adjusted_claims_are_seldom_false(rng):
    """15 true nulls and 5 real differences: of what is claimed at 0.2, a share of 0.2 times 15/20 is to be false."""
    shares = []
    for _ in range(300):
        p = np.concatenate([rng.random(15), 2 * stats.norm.sf(np.abs(rng.normal(3, 1, size=5)))])
        claimed = np.array(adjust(p)) < 0.2
        shares.append(claimed[:15].sum() / max(claimed.sum(), 1))
    assert 0.12 < np.mean(shares) < 0.18


def test_everything_is_repeatable_and_leaves_other_random_numbers_alone(rng):
    a, b = rng.normal(size=(2, 100))
    before = np.random.get_state()[1].copy()
    for function, given in (
        (mean_interval, (a,)),
        (ratio_interval, (a, b**2)),
        (paired_difference, (a, b)),
    ):
        assert function(*given) == function(*given) == function(*given, seed=0)
        assert function(*given, seed=1) != function(*given)
    assert np.array_equal(before, np.random.get_state()[1])


def test_batches_change_nothing(rng, monkeypatch):
    a, b = rng.normal(size=(2, 100))
    whole = mean_interval(a), ratio_interval(a, b**2), paired_difference(a, b)
    monkeypatch.setattr(statistics, "_NUMBERS_AT_ONCE", 12345)
    assert (mean_interval(a), ratio_interval(a, b**2), paired_difference(a, b)) == whole


@pytest.mark.parametrize("bad", [[], [1, math.nan], [1, math.inf], [1, None], ["a"], 3.0, [[1, 2], [3]], [[[1]]]])
def test_values_that_are_no_numbers(bad):
    for function in (mean_interval, seed_interval, adjust):
        with pytest.raises(InputError, match="statistics"):
            function(bad)
    for function in (ratio_interval, paired_difference, paired_seeds):
        with pytest.raises(InputError, match="statistics"):
            function(bad, [1, 2])


@pytest.mark.parametrize("function", [ratio_interval, paired_difference, paired_seeds])
def test_unequal_shapes(function):
    with pytest.raises(InputError, match=r"shapes \(2,\) and \(3,\)"):
        function([1, 2], [1, 2, 3])
    if function is not ratio_interval:
        with pytest.raises(InputError, match="same questions"):
            function([[1, 2, 3]], [1, 2, 3])


@pytest.mark.parametrize(("top", "bottom"), [([1, 1], [1, -1]), ([0, 0], [0, 0]), ([1, 1], [1, 0])])
def test_what_cannot_be_divided_by(top, bottom):
    with pytest.raises(InputError, match="denominators above 0"):
        ratio_interval(top, bottom)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_shares_of_nothing(right, n):
    with pytest.raises(InputError, match="a share is of at least one"):
        proportion_interval(right, n)


def test_what_is_no_p_value():
    with pytest.raises(InputError, match="between 0 and 1"):
        adjust([0.5, 1.5])
