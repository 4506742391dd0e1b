"""Charts and tables of what varies, and of groups of questions."""

from dataclasses import replace

import pytest
from report_pages import between, points

from sequencematch.reporting.factors import factor_charts, heat_tables, sweeps
from sequencematch.reporting.groups import group_tables
from sequencematch.reporting.heat import LEVELS, level
from sequencematch.reporting.rows import main_rows


def test_sweeps_have_what_the_study_configures(grid):
    found = {
        (sweep.arm, sweep.factor, sweep.rest.get("noise_source")): sweep
        for sweep in sweeps(grid)
        if sweep.factor == "noise_rate"
    }
    assert len(found) == 4
    line = found["sequencematch_lecam", "noise_rate", "model"]
    assert [x for x, _ in line.points] == [0.01, 0.1, 0.3, 0.5, 1.0]
    assert line.points[3][1].name == "sequencematch_lecam"  # the arm as it is, at the configured 0.5
    assert [x for x, _ in found["sequencematch_lecam", "noise_rate", "uniform"].points] == [0.01, 0.1, 0.3, 1.0]


def test_factor_charts_have_a_line_for_each_arm_and_categorical_value(grid):
    (chart,) = factor_charts(grid, "sampled")
    assert (chart.title, chart.note, chart.x_axis.log) == ("Noise rate", "Accuracy, Sampled", True)
    assert [name for _, name in chart.legend] == [
        "MLE, 0.696",
        "SequenceMatch (chi2-mixture, rollouts), noise source model",
        "SequenceMatch (lecam), noise source model",
        "SequenceMatch (chi2-mixture, rollouts), noise source uniform",
        "SequenceMatch (lecam), noise source uniform",
    ]
    baseline, band, line, *_ = chart.lines
    assert [y for _, y in points(baseline)] == pytest.approx([between(chart.y_axis, 0.6958)] * 2, abs=1e-3)
    cell = "sequencematch, noise_source=model, noise_rate=0.1"
    estimate = grid.estimates[cell, "sampled", "accuracy"]
    assert points(line)[1][1] == pytest.approx(between(chart.y_axis, estimate.mean), abs=1e-3)
    assert points(band)[1][1] == pytest.approx(between(chart.y_axis, estimate.low), abs=1e-3)
    assert len(chart.marks) == 5 + 5 + 4 + 4


def test_two_numeric_factors_crossed_are_a_table(grid):
    (table,) = heat_tables(grid, "greedy_exclude")
    assert table.title == "SequenceMatch (chi2-mixture, rollouts), Greedy exclude"
    assert (table.corner, table.columns) == ("gamma ↓ alpha →", ["0.001", "0.01", "0.1"])
    assert [label for label, _ in table.rows] == ["0.9", "0.99", "0.998"]
    cell = grid.estimates["sequencematch, alpha=0.1, gamma=0.9", "greedy_exclude", "accuracy"]
    assert table.rows[0][1][2].text == f"{cell.mean:.3f}"
    assert [cell.mark for cell in table.rows[0][1]] == [1, 1, 0]
    levels = [cell.level for _, cells in table.rows for cell in cells]
    assert (min(levels), max(levels)) == (0, LEVELS - 1)


def test_two_sweeps_that_meet_are_no_crossing(grid):
    kept = [cell for cell in grid.cells if cell.factors.get("gamma", 0.99) == 0.99 or cell.factors["alpha"] == 0.01]
    study = replace(grid, cells=tuple(kept))
    assert heat_tables(study, "sampled") == []
    assert [chart.title for chart in factor_charts(study, "sampled")] == ["Noise rate", "Alpha", "Gamma"]


def test_a_study_without_factors_has_no_sensitivity(star):
    assert factor_charts(star, "sampled") == heat_tables(star, "sampled") == []


def test_groups_are_means_over_questions_and_seeds(star):
    tables = group_tables(star, main_rows(star))
    assert next(table.title for table in tables) == "Sampled"
    assert next(label for label, _ in tables[0].rows) == "ten arms (80 questions)"
    answers = star.answers
    part = answers[(answers["group"] == "ten arms") & (answers["cell"] == "bc") & (answers["decoding"] == "sampled")]
    assert tables[0].rows[0][1][1].text == f"{part['score'].mean():.3f}"
    assert group_tables(replace(star, answers=answers.assign(group="one")), main_rows(star)) == []


def test_groups_are_ordered_by_their_numbers(grid):
    assert [label.split(" (")[0] for label, _ in group_tables(grid, main_rows(grid))[0].rows] == ["base 9", "base 10"]


def test_shades():
    assert [level(value, 0.0, 0.9) for value in (-1.0, 0.0, 0.05, 0.45, 0.82, 0.9, 2.0)] == [0, 0, 0, 4, 8, 8, 8]
    assert level(0.5, 0.5, 0.5) == LEVELS // 2


def test_a_missing_measurement_leaves_a_hole(grid):
    estimates = dict(grid.estimates)
    del estimates["sequencematch, alpha=0.1, gamma=0.9", "sampled", "accuracy"]
    (table,) = heat_tables(replace(grid, estimates=estimates), "sampled")
    assert table.rows[0][1][2] is None
    assert table.rows[0][1][1] is not None
