"""Charts: every dot, line and shade stands where the numbers put it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from report_pages import between, points

from sequencematch.reporting.axes import Axis, amount_axis, factor_axis, metric_axis, ticks
from sequencematch.reporting.charts import whisker_panels
from sequencematch.reporting.costs import budget_charts, frontier, pareto, right_within, training_chart
from sequencematch.reporting.curves import BACKSPACE, LEARNING, MAX_POINTS, curve_charts
from sequencematch.reporting.groups import group_tables
from sequencematch.reporting.rows import main_rows
from sequencematch.reporting.study import Cell, Estimate, TrainingRun
from sequencematch.reporting.styles import styles


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.97), (-3.2, 7.9), (5, 5), (0, 0), (1e-7, 3e-7), (0, 9999)])
def test_ticks_enclose_the_range(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 7
    assert marks == sorted(set(marks))


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (0.98, 1.0), (0.0, 0.5), (0.31, 0.97)])
def test_axes_of_shares_stay_between_0_and_1(values):
    axis = metric_axis("accuracy", values)
    assert 0 <= axis.low <= min(values) <= max(values) <= axis.high <= 1
    assert axis.low < axis.high
    assert metric_axis("perplexity", (3.0, 3.0)).high > 3


def test_axes_of_factors_are_logarithmic_where_values_span_a_factor_of_thirty():
    axis = factor_axis([0.01, 0.1, 0.3])
    assert axis.log
    assert axis.at(0.1) == pytest.approx((axis.at(0.01) + axis.at(1.0)) / 2)
    assert [label for _, label in axis.ticks] == ["0.01", "0.1", "0.3"]
    assert not factor_axis([0.1, 1.0, 2.9]).log
    assert not factor_axis([-1.0, 100.0]).log


def test_zero_stands_apart_on_a_logarithmic_axis():
    axis = factor_axis([0.0, 0.01, 1.0])
    assert axis.log
    assert axis.at(0.0) == 0
    assert 10 < axis.at(0.01) < axis.at(1.0) < 100
    assert [label for _, label in axis.ticks] == ["0", "0.01", "1"]


def test_axes_of_amounts_begin_at_zero_or_are_logarithmic():
    assert (amount_axis([4.0, 8.0]).low, amount_axis([4.0, 8.0]).log) == (0.0, False)
    assert amount_axis([3.0, 300.0]).log
    assert not amount_axis([3.0, 300.0], may_be_log=False).log
    assert amount_axis([0.0]).high > 0


def test_crowded_ticks_lose_their_label():
    found = factor_axis([0.5, 0.998, 0.999, 1.0]).ticks
    assert [label for _, label in found] == ["0.5", "0.998"]


def test_every_cell_has_a_style_of_its_own(star, grid):
    for study in (star, grid):
        found = styles(study.cells[:12])
        assert len(set(found.values())) == len(found)
    colours = [style.colour for style in styles(grid.cells).values()]
    assert colours[1] == colours[3]  # one arm, one colour


def test_whiskers_reach_over_the_interval_and_show_every_seed(star):
    panels = whisker_panels(star, main_rows(star))
    assert [panel.title for panel in panels][:2] == ["Sampled", "Sampled, no deletion"]
    assert len({tuple(panel.ticks) for panel in panels}) == 1
    whisker = panels[0].whiskers[1]
    estimate = star.estimates["bc", "sampled", "accuracy"]
    (low, low_label), (high, high_label) = panels[0].ticks[0], panels[0].ticks[-1]
    scale = (high - low) / (float(high_label) - float(low_label))
    for at, value in zip((whisker.at, whisker.low, whisker.high), (estimate.mean, *estimate.ends), strict=True):
        assert at == pytest.approx(low + scale * (value - float(low_label)), abs=0.02)
    assert len(whisker.seeds) == 3
    assert np.mean(whisker.seeds) == pytest.approx(whisker.at, abs=0.02)
    assert (whisker.name, whisker.text) == ("BC with deletions", f"{estimate.mean:.3f} [0.862, 0.999]")


def test_one_seed_is_no_faint_dot(grid):
    assert not any(whisker.seeds for panel in whisker_panels(grid, main_rows(grid)) for whisker in panel.whiskers)


def test_curves_are_means_over_seeds_with_their_range():
    def run(seed, steps, slope):
        return TrainingRun("mle", seed, 9, 1.0, [{"step": step, "loss": slope * step, "other": 1.0} for step in steps])

    study = study_of_runs([run(0, (0, 10, 20), 1.0), run(1, (0, 5, 10, 15, 20, 30), 3.0)])
    (chart,) = curve_charts(study, main_rows(study), LEARNING)
    assert chart.title == "Training loss"
    band, line = chart.lines
    assert (band.kind, line.kind) == ("band", "curve")
    places = [(x / chart.x_axis.high, between(chart.y_axis, 2 * x)) for x in (0, 10, 20)]
    assert points(line) == [pytest.approx(place, abs=1e-3) for place in places]
    lows, highs = points(band)[:3], points(band)[3:][::-1]
    assert [y for _, y in lows] == pytest.approx([between(chart.y_axis, x) for x in (0, 10, 20)], abs=1e-3)
    assert [y for _, y in highs] == pytest.approx([between(chart.y_axis, 3 * x) for x in (0, 10, 20)], abs=1e-3)


def test_long_curves_are_averaged_down_and_short_ones_left_out():
    long = TrainingRun("mle", 0, 9, 1.0, [{"step": step, "loss": float(step % 2)} for step in range(10_000)])
    short = TrainingRun("bc", 0, 9, 1.0, [{"step": 1, "loss": 1.0}])
    study = study_of_runs([long, short])
    (chart,) = curve_charts(study, main_rows(study), LEARNING)
    (line,) = chart.lines
    assert 60 < len(points(line)) <= MAX_POINTS
    assert all(0 <= number <= 1 for point in points(line) for number in point)


def study_of_runs(runs):
    from sequencematch.reporting.study import StudyResults

    cells = (Cell("mle", "mle", "MLE", {}), Cell("bc", "bc", "BC", {}))
    return StudyResults(
        title="",
        description="",
        baseline=cells[0],
        budget="",
        seeds=(0, 1),
        decodings={"sampled": {}},
        cells=cells,
        metrics=("accuracy",),
        questions=None,
        facts={},
        date="",
        seconds=None,
        config={},
        values={},
        estimates={},
        comparisons={},
        runs=tuple(runs),
    )


def test_backspace_behaviour_over_training(star):
    charts = curve_charts(star, main_rows(star), BACKSPACE)
    assert [chart.title for chart in charts] == [title for _, title, _ in BACKSPACE]
    assert all(len([line for line in chart.lines if line.kind == "curve"]) == 3 for chart in charts)  # not of MLE
    assert "BC with deletions from 0." in charts[1].summary


def test_right_within_is_the_mean_over_seeds_of_score_within_the_budget(star):
    curves = right_within(star)
    for budget in (0, 3, 4, 7, 8, 12, 1000):
        part = star.answers[(star.answers["cell"] == "bc") & (star.answers["decoding"] == "greedy")]
        shares = [
            (seed["score"] * (seed["actions"] <= budget)).mean() for _, seed in part.groupby("seed", observed=True)
        ]
        assert curves["bc", "greedy"](np.array([budget]))[0] == pytest.approx(np.mean(shares), abs=1e-12)


def test_questions_without_a_score_do_not_count(star):
    answers = star.answers.copy()
    answers.loc[answers["question"] < 120, "score"] = np.nan
    found = right_within(replace(star, answers=answers))["bc", "greedy"](np.array([1000]))[0]
    rest = answers[(answers["cell"] == "bc") & (answers["decoding"] == "greedy")].dropna()
    assert found == pytest.approx(rest["score"].mean())
    answers["score"] = np.nan
    assert budget_charts(replace(star, answers=answers), main_rows(star)) == []
    assert group_tables(replace(star, answers=answers), main_rows(star)) == []


def test_budget_curves_are_steps_that_end_at_the_accuracy(star):
    charts = budget_charts(star, main_rows(star))
    assert next(chart.title for chart in charts) == "Sampled"
    line = charts[0].lines[1]
    found = points(line)
    assert all(x == other_x or y == other_y for (x, y), (other_x, other_y) in itertools.pairwise(found))
    assert [y for _, y in found] == sorted(y for _, y in found)
    assert found[0] == (0.0, 0.0)
    assert found[-1][1] == pytest.approx(star.estimates["bc", "sampled", "accuracy"].mean, abs=0.02)


def test_pareto():
    points = [(4, 0.3), (8, 0.9), (8, 0.95), (9, 0.95), (3, 0.3), (10, 0.5), (20, 0.99)]
    assert pareto(points) == [4, 2, 6]
    for index, (cost, quality) in enumerate(points):
        beaten = any((c <= cost and q > quality) or (c < cost and q >= quality) for c, q in points)
        assert beaten == (index not in pareto(points))


def test_the_frontier_has_a_dot_for_each_cell_and_way_of_decoding(star):
    found = frontier(star)
    assert len(found.chart.marks) == 4 * 5
    (line,) = found.chart.lines
    assert line.kind == "frontier"
    assert len(points(line)) == len(found.points)
    assert found.points[-1].startswith("SequenceMatch (chi2-mixture, rollouts), Greedy exclude: 1.000 with")
    assert [name for _, name in found.shapes] == [
        "Sampled",
        "Sampled, no deletion",
        "Greedy",
        "Greedy, no deletion",
        "Greedy exclude",
    ]
    estimates = {key: value for key, value in star.estimates.items() if key[2] != "actions"}
    assert frontier(replace(star, estimates=estimates)) is None


def test_training_time_and_quality(star):
    chart = training_chart(star, main_rows(star))
    assert len(chart.marks) == len(chart.lines) == 4
    assert chart.marks[0].x == pytest.approx(100 * 71 / chart.x_axis.high, abs=0.01)
    assert "MLE: 0.301 [0.212, 0.391], 1 min 11 s" in chart.summary
    assert training_chart(replace(star, runs=()), main_rows(star)) is None


def test_axes_place_values():
    assert Axis(2.0, 4.0, False, ()).at(3.0) == 50
    assert Estimate(0.5, None, 0.6, 1).ends == (0.5, 0.5)
