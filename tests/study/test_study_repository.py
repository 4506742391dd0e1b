"""The studies of this repository: each can be run."""

from pathlib import Path

import pytest

from sequencematch.study import Study

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
