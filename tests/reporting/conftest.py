"""The results of two made-up studies, and copies of them to change."""

import shutil

import pytest
from study_folders import grid_study, star_study


@pytest.fixture(scope="session")
def star_folder(tmp_path_factory):
    """Four arms, three seeds; not to be written to."""
    folder = tmp_path_factory.mktemp("studies") / "star"
    star_study(folder)
    return folder


@pytest.fixture(scope="session")
def grid_folder(tmp_path_factory):
    """Factors that vary, one seed; not to be written to."""
    folder = tmp_path_factory.mktemp("studies") / "arithmetic"
    grid_study(folder)
    return folder


@pytest.fixture
def star_copy(star_folder, tmp_path):
    """A copy of `star_folder` to change."""
    return shutil.copytree(star_folder, tmp_path / "star")


@pytest.fixture(scope="session")
def star(star_folder):
    """`star_folder`, loaded."""
    from sequencematch.reporting import load_study

    return load_study(star_folder)


@pytest.fixture(scope="session")
def grid(grid_folder):
    """`grid_folder`, loaded."""
    from sequencematch.reporting import load_study

    return load_study(grid_folder)


@pytest.fixture(scope="session")
def page(star_folder, grid_folder, tmp_path_factory):
    """The report of both."""
    from sequencematch.reporting import write_report

    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([star_folder, grid_folder], path)
    return path.read_text(encoding="utf-8")
