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


def test_the_text_studys_featurizer_is_the_one_that_its_config_makes():
    config = STUDIES[0].parent / "text" / "featurizer.yaml"
    run = Run.parse(["--config", str(config)])
    assert run.training.output_dir == Study.load(config.parents[1] / "text.yaml").evaluation.featurizer
    assert run.data.dataset_name == Study.load(config.parents[1] / "text.yaml").options["dataset_name"]
