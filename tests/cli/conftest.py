"""A trained model, made once through the command line itself."""

import pytest


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch, tmp_path_factory):
    """Data sets are cached in a temporary folder, and what the command sets in the environment is undone."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a model trained for five steps, with the checkpoints of its second and fourth."""
    from cli_runs import write_config

    from sequencematch.cli.main import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(write_config(folder, max_steps=40, save_strategy="steps", save_steps=20)) == 0
    return folder / "out"
