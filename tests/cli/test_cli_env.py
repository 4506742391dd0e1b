"""`sequencematch env`: what a bug report needs, whatever is missing."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from sequencematch import __version__
from sequencematch.cli import env
from sequencematch.errors import InputError


@pytest.fixture(autouse=True)
def hf_home(tmp_path, monkeypatch):
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "new" / "cache"))
    return tmp_path / "new" / "cache"


def as_json(capsys):
    env.run(["--json"])
    return json.loads(capsys.readouterr().out)


def test_versions_and_hardware(capsys):
    import torch

    found = as_json(capsys)
    assert found["sequencematch"] == __version__
    assert found["python"] == sys.version.split()[0]
    for package in ("torch", "transformers", "trl", "accelerate", "datasets", "numpy"):
        assert found[package] == version(package)
    assert found["threads"] == torch.get_num_threads()
    assert found["cpus"] >= 1
    assert found["cuda"] == torch.version.cuda
    assert len(found["accelerators"]) == (torch.accelerator.device_count() if torch.accelerator.is_available() else 0)


def test_the_list_says_what_the_json_says(capsys):
    found = as_json(capsys)
    env.run([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].removeprefix("- ") for line in lines[2:]] == list(found)
    assert f"- torch: {found['torch']}" in lines


def test_a_missing_package_is_said_to_be_missing(capsys, monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(env, "version", nothing)
    monkeypatch.setitem(sys.modules, "psutil", None)
    env.run([])
    lines = capsys.readouterr().out.splitlines()
    assert all(f"- {package}: not installed" in lines for package in env.PACKAGES)
    assert "- memory: none" in lines


def test_a_broken_torch_is_reported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = as_json(capsys)
    assert found["accelerators"].startswith("torch cannot be imported: ")
    assert found["cpus"] >= 1


def test_a_package_outside_a_checkout_has_no_commit(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(env, "__file__", str(tmp_path / "lib" / "site-packages" / "sequencematch" / "cli" / "env.py"))
    assert as_json(capsys)["commit"] is None


def test_without_git_there_is_no_commit(capsys, monkeypatch, tmp_path):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(env, "__file__", str(tmp_path / "src" / "sequencematch" / "cli" / "env.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert as_json(capsys)["commit"] is None


def test_the_default_config_of_accelerate_is_shown(capsys, hf_home):
    assert as_json(capsys)["accelerate_config"] is None
    folder = hf_home / "accelerate"
    folder.mkdir(parents=True)
    (folder / "default_config.json").write_text("{}")
    (folder / "default_config.yaml").write_text("distributed_type: 'NO'\nnum_processes: 2\n")
    env.run([])
    assert "- accelerate_config:\n    distributed_type: 'NO'\n    num_processes: 2\n" in capsys.readouterr().out
    (folder / "default_config.yaml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in as_json(capsys)["accelerate_config"]


def test_unknown_flags_are_bad_input():
    with pytest.raises(InputError, match=r"--yaml.*sequencematch env --help"):
        env.run(["--yaml"])
    with pytest.raises(InputError, match="sequencematch env --help"):
        env.run(["--json=1"])
