from importlib.metadata import PackageNotFoundError, version

import sequencematch
import sequencematch.versions as module


def test_a_copy_that_is_not_installed_tells_its_version_too(monkeypatch):
    def installed(name):
        if name == "sequencematch":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(module, "version", installed)
    found = module.versions()
    assert found["sequencematch"] == sequencematch.__version__
    assert found["torch"] == version("torch")
