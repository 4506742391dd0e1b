import inspect
import re
import subprocess
import sys

import pytest

import sequencematch

PROBE = """
import sys, time
start = time.perf_counter()
import sequencematch
print(time.perf_counter() - start)
print(*(name for name in {heavy!r} if name in sys.modules))
"""
HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "scipy", "rich", "matplotlib")


def test_importing_the_package_costs_nothing():
    # The fastest of three, because other programs run meanwhile.
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(heavy=HEAVY)], capture_output=True, text=True, check=True
        )
        time, loaded = done.stdout.split("\n")[:2]
        assert loaded == ""
        seconds.append(float(time))
    assert min(seconds) < 0.3


@pytest.mark.parametrize("name", sequencematch.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(sequencematch, name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+", value)
        return
    assert inspect.getdoc(value)
    assert value.__name__ == name


def test_public_names_are_listed_once_and_shown():
    assert len(set(sequencematch.__all__)) == len(sequencematch.__all__)
    assert set(sequencematch.__all__) <= set(dir(sequencematch))


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Sequencer'"):
        _ = sequencematch.Sequencer


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert sequencematch.__version__ == version("sequencematch")


def test_the_command_line_starts_without_torch():
    """So that a mistyped command or `--help` answers at once."""
    code = "import sys; from sequencematch.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
