"""The direction of imports: each subpackage builds on the ones named here, and on nothing else."""

import ast
from pathlib import Path

import pytest

import sequencematch

ROOT = Path(sequencematch.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

ALLOWED = {
    "errors": set(),
    "files": set(),
    "versions": set(),
    "mdp": {"errors"},
    "tree": {"errors", "mdp"},
    "objectives": {"errors"},
    "models": {"errors", "mdp", "objectives", "tree"},
    "rollouts": {"errors", "mdp", "models"},
    "tasks": {"errors"},
    "data": {"errors", "mdp"},
    "noise": {"errors", "mdp", "tree", "models", "data", "rollouts"},
    "training": {
        "errors",
        "mdp",
        "tree",
        "objectives",
        "models",
        "rollouts",
        "tasks",
        "data",
        "noise",
        "evaluation",
        "reporting",
        "versions",
    },
    "evaluation": {"errors", "mdp", "tree", "objectives", "models", "data", "noise", "rollouts"},
    "reporting": {"errors", "files"},
    "study": {"errors", "files", "data", "mdp", "models", "rollouts", "tasks", "training", "evaluation", "versions"},
    "integrations": {"errors", "mdp", "tree", "models", "rollouts"},
    "demo": {"study", "reporting"},
    "cli": {
        "errors",
        "data",
        "models",
        "rollouts",
        "tasks",
        "training",
        "evaluation",
        "study",
        "integrations",
        "reporting",
        "demo",
    },
    "__init__": set(),
}
FOR_TYPES_ONLY = {"noise": {"tasks"}, "evaluation": {"tasks"}}
WITHOUT = {
    "errors": {"numpy", "torch", "transformers"},
    "mdp": {"torch", "transformers", "datasets"},
    "tree": {"transformers", "datasets"},
    "objectives": {"transformers", "datasets", "numpy"},
    "tasks": {"torch"},
    "reporting": {"torch", "transformers", "datasets"},
}
"""What is kept out of a subpackage altogether, wherever in a module it is imported."""
ONLY_CLI = {"argparse"}


def layer(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path):
    """`(absolute module name, whether for types only)` of every import in a module, those in functions included."""
    package = ("sequencematch", *path.relative_to(ROOT).parts[:-1])
    found = []

    def visit(node, types_only):
        if isinstance(node, ast.Import):
            found.extend((alias.name, types_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            found.extend((".".join([*base, alias.name]), types_only) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, types_only or is_type_checking(node))

    visit(ast.parse(path.read_text()), False)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_it_builds_on(path):
    own = layer(path)
    for name, types_only in imports(path):
        parts = name.split(".")
        if parts[0] != "sequencematch":
            assert parts[0] not in WITHOUT.get(own, set()), f"{own} does without {parts[0]}"
            assert parts[0] not in ONLY_CLI or own == "cli", f"{parts[0]} belongs to the command line"
            continue
        target = parts[1]
        if target in (own, "__version__"):
            continue
        allowed = ALLOWED[own] | (FOR_TYPES_ONLY.get(own, set()) if types_only else set())
        assert target in allowed, f"{own} does not build on {target}"


def test_models_take_from_objectives_what_a_step_is_and_nothing_more():
    names = {name for path in MODULES if layer(path) == "models" for name, _ in imports(path)}
    taken = {name for name in names if name.startswith("sequencematch.objectives")}
    assert taken == {"sequencematch.objectives.steps.Steps"}


def test_the_table_has_every_subpackage_and_no_circle():
    assert {layer(path) for path in MODULES} == set(ALLOWED)
    order = []
    while len(order) < len(ALLOWED):
        ready = [name for name in ALLOWED if name not in order and ALLOWED[name] <= set(order)]
        assert ready, f"a circle among {set(ALLOWED) - set(order)}"
        order += ready


def test_reading_imports(tmp_path, monkeypatch):
    """The reader itself: relative levels, functions and TYPE_CHECKING."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "noise").mkdir()
    path = tmp_path / "noise" / "some.py"
    path.write_text(
        "import numpy as np\nfrom ..mdp import Trajectory\nfrom .model import X\nfrom .. import errors\n"
        "if TYPE_CHECKING:\n    from ..tasks import Task\ndef f():\n    from torch import nn\n"
    )
    assert imports(path) == [
        ("numpy", False),
        ("sequencematch.mdp.Trajectory", False),
        ("sequencematch.noise.model.X", False),
        ("sequencematch.errors", False),
        ("sequencematch.tasks.Task", True),
        ("torch.nn", False),
    ]
