"""What a study's file may say, and what cells it makes."""

import pytest
import yaml
from study_files import tiny

from sequencematch import InputError
from sequencematch.study import Budget, Study, jobs_of
from sequencematch.study.budget import with_steps
from sequencematch.study.spec import merged


def test_every_arm_is_a_cell_and_every_combination_of_what_varies():
    grid = {"arms": ["bc"], "options": {"noise_rate": [0.1, 0.9], "task_options.degree": [2, 3]}}
    study = Study.of("tiny", tiny(vary=[grid, {"options": {"learning_rate": [0.1]}}]))
    cells = {cell.name: cell for cell in study.cells}
    assert list(cells) == [
        "mle",
        "bc",
        "bc, noise_rate=0.1, task_options.degree=2",
        "bc, noise_rate=0.1, task_options.degree=3",
        "bc, noise_rate=0.9, task_options.degree=2",
        "bc, noise_rate=0.9, task_options.degree=3",
        "mle, learning_rate=0.1",
        "bc, learning_rate=0.1",
    ]
    found = cells["bc, noise_rate=0.9, task_options.degree=3"]
    assert found.factors == {"noise_rate": 0.9, "task_options.degree": 3}
    assert found.options["task_options"] == {"degree": 3, "length": [1, 2], "nodes": 8}
    assert found.options["objective"] == "bc"
    assert cells["bc"].options["task_options"]["degree"] == 2  # what varies elsewhere does not leak


def test_merging_changes_neither_side():
    options = {"a": {"b": 1, "c": 2}, "d": 3}
    more = {"a.b": 5, "e.f": 6}
    assert merged(options, more) == {"a": {"b": 5, "c": 2}, "d": 3, "e": {"f": 6}}
    assert options == {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged({"a": {"b": 1}}, {"a": {}}) == {"a": {}}


def test_a_study_from_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny(), sort_keys=False))
    study = Study.load(path)
    assert (study.name, study.title, study.baseline, study.seeds) == ("mine", "Tiny stars", "mle", (0, 1))
    assert study.budget == Budget("steps", 3)
    study.check()


GRID = {"options": {"gamma": [0.9]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "a study has no 'colour'"),
        ({"arms": None}, "has no 'arms'"),
        ({"budget": None}, "has no 'budget'"),
        ({"arms": {}}, "at least one arm"),
        ({"baseline": "sft"}, "baseline names 'sft', which is no arm; the arms are mle, bc"),
        ({"titles": {"x": "X"}}, "titles names 'x'"),
        ({"vary": [{**GRID, "arms": ["x"]}]}, "vary names 'x'"),
        ({"vary": [{"arms": ["bc"]}]}, "needs 'options'"),
        ({"vary": [{"options": {"gamma": 0.9}}]}, "needs 'options', a mapping from option to a list"),
        ({"vary": [{**GRID, "arm": ["bc"]}]}, "has 'arms' and 'options', not"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": []}, "seeds must be different"),
        ({"decoding": {}}, "at least one way of decoding"),
        ({"decoding": {"hot": {"temperature": -1}}}, "decoding 'hot': temperature must be"),
        ({"decoding": {"hot": {"heat": 2}}}, "decoding 'hot': .* has no option 'heat'"),
        ({"decoding": {"hot": {"method": "magic"}}}, "no decoding method 'magic'"),
        ({"evaluation": {"metrics": ["beauty"]}}, "no metric 'beauty'"),
        ({"evaluation": {"size": 3}}, "evaluation is a mapping with"),
        ({"evaluation": {"engine": "sglang"}}, "the engine is one of hf, vllm, not 'sglang'"),
        (
            {"evaluation": {"engine": "vllm"}, "decoding": {"wide": {"method": "beam"}}},
            "decoding 'wide': vLLM has no search for .* 'beam'",
        ),
        ({"budget": 800}, "budget is one of steps, tokens and seconds"),
        ({"budget": {"steps": 8, "seconds": 3}}, "budget is one of"),
        ({"budget": {"euros": 8}}, "a budget is in steps, tokens, seconds, not 'euros'"),
        ({"budget": {"steps": 0}}, "must be above 0"),
        ({"budget": {"steps": 1.5}}, "must be above 0"),
    ],
)
def test_what_is_no_study(changes, message):
    with pytest.raises(InputError, match=message):
        Study.of("tiny", tiny(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"mle": {"max_steps": 5}}}, "sets max_steps, which the budget does"),
        ({"vary": [{"options": {"max_steps": [5]}}]}, "sets max_steps"),
        ({"vary": [{"options": {"gama": [0.9]}}]}, "'mle, gama=0.9' of the study 'tiny': there is no option 'gama'"),
        ({"vary": [{"arms": ["bc"], "options": {"gamma": [2]}}]}, "'bc, gamma=2' of the study .* gamma must be"),
        ({"pretrain": {"objective": "mle", "noise_source": "none"}}, "pretrain needs max_steps"),
    ],
)
def test_runs_that_would_fail_are_refused_before_any_starts(changes, message):
    with pytest.raises(InputError, match=message):
        Study.of("tiny", tiny(**changes)).check()


def test_measurements_by_this_librarys_engine_keep_their_address(tmp_path):
    files = {}
    for name, given in (("default", {}), ("hf", {"engine": "hf"}), ("vllm", {"engine": "vllm"})):
        jobs, _ = jobs_of(Study.of("tiny", tiny(evaluation=given)), tmp_path)
        files[name] = jobs["bc", 0].evaluation_file("sampled")
    assert files["default"] == files["hf"] != files["vllm"]


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(InputError, match="there is no study"):
        Study.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        Study.load(tmp_path)
    path = tmp_path / "study.yaml"
    for text, message in (("a: [", "no valid YAML"), ("- a", "must be a mapping")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            Study.load(path)


def test_a_schedule_keeps_its_shares_whatever_the_number_of_steps():
    options = {"max_steps": 1000, "warmup_steps": 50, "bc_warmup_steps": 500, "bc_anneal_steps": 0,
               "lr_scheduler_kwargs": {"num_decay_steps": 300, "other": 7}, "rollout_steps": 20}  # fmt: skip
    found = with_steps(options, 40)
    assert found == {"max_steps": 40, "warmup_steps": 2, "bc_warmup_steps": 20, "bc_anneal_steps": 0,
                     "lr_scheduler_kwargs": {"num_decay_steps": 12, "other": 7}, "rollout_steps": 20}  # fmt: skip
    assert options["lr_scheduler_kwargs"]["num_decay_steps"] == 300
    assert with_steps(options, 1)["bc_warmup_steps"] == 1
    # Without steps of its own, the schedule was made for those of the budget.
    assert with_steps({"warmup_steps": 50}, 40) == {"warmup_steps": 50, "max_steps": 40}


def test_a_budget_pays_for_at_least_one_step():
    assert Budget("seconds", 10.0).steps(0.3) == 33
    assert Budget("tokens", 10).steps(1000) == 1
