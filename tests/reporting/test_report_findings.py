"""Tables and sentences say what the numbers bear out, and no more."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sequencematch.reporting import study_tables
from sequencematch.reporting.findings import findings, headline
from sequencematch.reporting.rows import all_scores, main_cells, main_rows, measured_metrics, score
from sequencematch.reporting.study import Cell, Comparison
from sequencematch.reporting.wording import decoding_description, decoding_title, difference, duration, number, p_value


def compared(study, **differences):
    """The study with these differences, as `(difference, adjusted p)`, under its main way of decoding alone."""
    comparisons = {
        (cell, "sampled", "accuracy"): Comparison(value, value - 0.03, value + 0.03, p)
        for cell, (value, p) in differences.items()
    }
    return replace(study, comparisons=comparisons)


def test_a_finding_names_what_differs_with_amount_interval_and_p(star):
    study = compared(star, bc=(0.2, 0.012), sequencematch=(0.3, 1e-5), sequencematch_lecam=(-0.1, 0.04))
    first, *rest = findings(study)
    assert first.title == "Sampled"
    assert first.sentences == [
        "Above MLE: SequenceMatch (chi2-mixture, rollouts) by 0.300 [0.270, 0.330], adjusted p < 0.001; "
        "BC with deletions by 0.200 [0.170, 0.230], adjusted p = 0.012.",
        "Below MLE: SequenceMatch (lecam) by 0.100 [0.070, 0.130], adjusted p = 0.04.",
    ]
    assert rest[0].title == "Sampled, no deletion"
    assert headline(study) == (
        "Sampled, accuracy: BC with deletions and SequenceMatch (chi2-mixture, rollouts) are above MLE; "
        "SequenceMatch (lecam) is below MLE."
    )


def test_what_is_not_significant_is_not_claimed(star):
    study = compared(star, bc=(0.2, 0.05), sequencematch=(0.3, None), sequencematch_lecam=(-0.1, 0.9))
    assert findings(study)[0].sentences == [
        "No significant difference from MLE was found (smallest adjusted p = 0.05)."
    ]
    assert "no significant difference" in headline(study)
    assert not any(row.scores["sampled"].direction for row in main_rows(study))
    study = compared(star, bc=(0.2, 0.049), sequencematch=(0.3, 0.9))
    assert findings(study)[0].sentences[-1] == "No significant difference: SequenceMatch (chi2-mixture, rollouts)."
    assert headline(study) == "Sampled, accuracy: BC with deletions is above MLE."


def test_without_comparisons_nothing_is_compared(star):
    text = findings(replace(star, comparisons={}))[0].sentences
    assert len(text) == 1
    assert text[0].startswith("Highest accuracy: 0.953 [")
    assert text[0].endswith("of SequenceMatch (chi2-mixture, rollouts); no differences were tested.")


def test_less_is_better_for_some_metrics(star):
    estimates = {(cell, name, "perplexity"): found for (cell, name, _), found in star.estimates.items()}
    above = Comparison(0.4, 0.3, 0.5, 0.001)
    study = replace(
        star, metrics=("perplexity",), estimates=estimates, comparisons={("bc", "greedy", "perplexity"): above}
    )
    assert score(study, study.cells[1], "greedy", "perplexity").verdict == "worse"
    assert findings(study)[0].sentences[0].startswith("Lowest perplexity: ")
    better = replace(study, comparisons={("bc", "greedy", "perplexity"): replace(above, difference=-0.4)})
    assert score(better, study.cells[1], "greedy", "perplexity").verdict == "better"


def test_further_settings_are_counted(grid):
    sentence = findings(grid)[0].sentences[-1]
    others = [grid.comparison(cell, "sampled") for cell in grid.cells if cell not in main_cells(grid)]
    above = sum(found.direction == 1 for found in others)
    assert sentence == f"Of 25 further settings, {above} are significantly above and 0 below."
    assert above > 0


def test_the_main_table_of_many_cells_has_one_for_each_arm(grid, star):
    assert [cell.name for cell in main_cells(grid)] == ["mle", "sequencematch", "sequencematch_lecam"]
    assert main_cells(star) == list(star.cells)
    few = replace(grid, cells=grid.cells[:12])
    assert main_cells(few) == list(few.cells)


def test_an_arm_without_a_plain_cell_shows_its_first(grid):
    cells = tuple(cell for cell in grid.cells if cell.name != "sequencematch_lecam")
    assert (
        main_cells(replace(grid, cells=cells))[-1].title == "SequenceMatch (lecam), noise source model, noise rate 0.01"
    )


def test_rows_have_the_main_way_of_decoding_and_the_costs_of_training(star):
    row = main_rows(star)[1]
    estimate = star.estimate(row.cell, "sampled", "actions")
    assert row.actions == f"{estimate.mean:.1f}"
    assert row.deletion_rate.endswith("%")
    assert (row.time, row.seconds, row.steps) == ("1 min 20 s", "80 s", "1,000")
    bare = main_rows(replace(star, runs=(), estimates={}, values={}))[1]
    assert (bare.actions, bare.time, bare.seconds, bare.steps) == ("–", "–", "–", "–")


def test_all_metrics_are_in_the_large_table(star):
    metrics = measured_metrics(star)
    assert metrics == ["accuracy", "deletion_rate", "actions", "length", "truncated", "perplexity", "seconds"]
    lines = all_scores(star)
    assert len(lines) == 4 * 5
    assert all(all(scores) for _, _, scores in lines)


def rendered(study, width):
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for table in study_tables(study):
        console.print(table)
    return console.export_text(clear=False), console.export_text(styles=True)


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_tables_show_the_numbers_whole(star, width):
    text, _ = rendered(star, width)
    row = main_rows(star)[2]
    for part in ("Star graphs", "SequenceMatch", "(lecam)", row.scores["greedy"].value, row.actions, "1,000", "89 s"):
        assert part in text
    assert row.scores["sampled"].short_interval == ".85–1"
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_terminal_tables_mark_what_is_significantly_better(star):
    study = compared(star, bc=(0.2, 0.01), sequencematch=(0.3, 0.2), sequencematch_lecam=(-0.1, 0.01))
    text, styled = rendered(study, 140)
    values = [row.scores["sampled"].value for row in main_rows(study)]
    assert text.index("MLE") < text.index("BC with deletions") < text.index("SequenceMatch")
    assert f"\x1b[1m{values[1]}▲\x1b[0m" in styled
    assert f"{values[3]}▼" in text
    assert f"\x1b[1m{values[3]}" not in styled
    assert "\x1b[1mBC with deletions" in styled
    assert "\x1b[1mSequenceMatch" not in styled
    assert f"{values[2]}▲" not in text


def test_terminal_tables_of_other_settings_and_many_decodings(grid, star):
    assert [str(table.title) for table in study_tables(grid)] == [
        "Arithmetic in a base",
        "Arithmetic in a base: other settings",
    ]
    decodings = {f"way_{index}": {} for index in range(7)}
    found = next(iter(star.estimates.values()))
    many = replace(star, decodings=decodings, estimates={("mle", name, "accuracy"): found for name in decodings})
    assert [len(table.columns) for table in study_tables(many)] == [1 + 5 + 4, 1 + 2]


def test_terminal_tables_take_text_literally(star):
    study = replace(star, title="[bold]title[/nonsense]", cells=(Cell("mle", "mle", "[red]x", {}), *star.cells[1:]))
    text, _ = rendered(study, 140)
    assert "[bold]title[/nonsense]" in text
    assert "[red]x" in text


def test_wording():
    assert [duration(value) for value in (0.5, 71.4, 59.7, 3725, None)] == [
        "0.5 s",
        "1 min 11 s",
        "1 min 0 s",
        "1 h 2 min",
        "–",
    ]
    assert decoding_title("greedy_no_deletion") == "Greedy, no deletion"
    assert decoding_description({"temperature": 0.0, "retry": "exclude"}).startswith(
        "always the likeliest action; a deleted"
    )
    assert decoding_description({}) == "as the model was configured"
    assert (number("deletion_rate", 0.2931), number("unheard_of", -1234.56)) == ("29.3%", "−1235")
    assert (difference("accuracy", 0.1), difference("accuracy", -0.1)) == ("+0.100", "−0.100")
    assert (p_value(0.0009), p_value(0.0123)) == ("p < 0.001", "p = 0.012")
