"""The studies of this repository: each can be run."""

from pathlib import Path

import pytest

from sequencematch.study import Study
from sequencematch.training.run import Run

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def test_there_are_studies():
    assert STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True], ids=["whole", "miniature"])
def test_every_run_of_a_study_can_be_parsed(path, quick):
    study = Study.load(path, quick)
    study.check()
    assert study.baseline in [cell.name for cell in study.cells]
    assert study.description


@pytest.mark.parametrize(("name", "study"), [("featurizer", "text"), ("wikitext_featurizer", "wikitext")])
def test_a_text_studys_featurizer_is_the_one_that_its_config_makes(name, study):
    folder = STUDIES[0].parent
    run = Run.parse(["--config", str(folder / "text" / f"{name}.yaml")])
    study = Study.load(folder / f"{study}.yaml")
    assert run.training.output_dir == study.evaluation.featurizer
    assert run.data.dataset_name == study.options["dataset_name"]
    assert run.model.model_name_or_path == study.options["model_name_or_path"]
