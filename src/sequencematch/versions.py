"""What a run ran with."""

from importlib.metadata import version

from . import __version__

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Name -> version, of this library and of those that its results depend on.

    Its own needs no metadata: a copy that runs without being installed has none, and a run must not fail at its end.
    """
    return {"sequencematch": __version__, **{name: version(name) for name in PACKAGES}}
