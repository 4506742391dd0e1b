"""What a study is: a YAML file that names arms, what varies, seeds, budget and ways of decoding; and its cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..evaluation import MODES, Decoding, Evaluation
from ..training.run import Run
from .budget import Budget
from .miniature import miniature


@dataclass(frozen=True)
class Cell:
    """One point of a study's grid: an arm, and the values of what varies."""

    arm: str
    factors: Mapping[str, Any]
    """Option -> value, beyond the arm's own options."""
    options: Mapping[str, Any]
    """All training options but the seed and where the run starts from."""

    @property
    def name(self) -> str:
        """The arm, then the factors: `bc, noise_rate=0.1`."""
        return ", ".join([self.arm, *(f"{name}={value}" for name, value in self.factors.items())])


@dataclass(frozen=True)
class Study:
    """A study as its YAML file has it. Raises InputError for what cannot be run."""

    name: str
    """The file's name, without its ending."""
    title: str
    """What people call it."""
    arms: Mapping[str, Mapping[str, Any]]
    """Arm -> the options of `sequencematch train` that it adds to `options`."""
    budget: Budget
    """What every run of an arm may spend; equal for all."""
    baseline: str
    """The arm that the others are compared with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `sequencematch train` that all arms share."""
    pretrain: Mapping[str, Any] | None = None
    """Further options, `max_steps` among them, of the run whose checkpoint all arms of a seed start from."""
    vary: tuple[Mapping[str, Any], ...] = ()
    """Grids: each `{arms: [...], options: {name: [values]}}`, every combination of which is a cell. `a.b` names
    the entry b of the mapping a."""
    seeds: tuple[int, ...] = (0,)
    """Each cell is trained once for each."""
    decoding: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: dict(MODES))
    """Ways of decoding; the first is the main one. See `Decoding`."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """What is measured, and on what."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Arm -> what people call it."""
    description: str = ""
    """What a reader must know."""

    def __post_init__(self) -> None:
        if not self.arms:
            raise InputError("a study needs at least one arm; name it under 'arms' with its options")
        for what, names in (("baseline", [self.baseline]), ("titles", self.titles), ("vary", self._varied_arms())):
            for name in names:
                if name not in self.arms:
                    raise InputError(f"{what} names '{name}', which is no arm; the arms are {', '.join(self.arms)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must be different whole numbers, at least one, not {list(self.seeds)}")
        if not self.decoding:
            raise InputError("a study needs at least one way of decoding; leave 'decoding' out for the usual ones")
        for name, options in self.decoding.items():
            try:
                Decoding.of(options).check_engine(self.evaluation.engine)
            except InputError as error:
                raise InputError(f"decoding '{name}': {error}") from None

    @classmethod
    def load(cls, path: str | Path, quick: bool = False) -> Study:
        """Read a study from its YAML file; `quick` makes it a miniature. Raises InputError for what is no study."""
        path = Path(path)
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"there is no study '{path}'; check the path") from None
        except OSError as error:
            raise InputError(f"the study '{path}' cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"the study '{path}' is no valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(given, dict):
            raise InputError(f"the study '{path}' must be a mapping with 'title', 'arms', 'budget' and so on")
        study = cls.of(path.stem, given)
        return cls.of(path.stem, miniature(given)) if quick else study

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> Study:
        """A study from the mapping that its YAML file holds. Raises InputError."""
        known = {entry.name for entry in fields(cls)} - {"name"}
        for key in given:
            if key not in known:
                raise InputError(f"a study has no '{key}'; it has {', '.join(sorted(known))}")
        for key in ("arms", "budget"):
            if key not in given:
                raise InputError(f"the study '{name}' has no '{key}'")
        found = {"title": name, "baseline": next(iter(given["arms"] or {"": {}})), **given, "name": name}
        found["arms"] = {arm: dict(options or {}) for arm, options in (given["arms"] or {}).items()}
        found["budget"] = Budget.of(given["budget"])
        found["vary"] = tuple(given.get("vary") or ())
        if "seeds" in given:
            found["seeds"] = tuple(given["seeds"])
        if "evaluation" in given:
            found["evaluation"] = Evaluation.of(given["evaluation"])
        return cls(**found)

    @property
    def cells(self) -> list[Cell]:
        """Every arm as it is, then every combination of what varies. Raises InputError if one cannot be trained."""
        found = {arm: self._cell(arm, {}) for arm in self.arms}
        for grid in self.vary:
            varied = grid["options"]
            for arm in grid.get("arms") or self.arms:
                for values in itertools.product(*varied.values()):
                    cell = self._cell(arm, dict(zip(varied, values, strict=True)))
                    found[cell.name] = cell
        return list(found.values())

    def as_dict(self) -> dict[str, Any]:
        """The study as plain values, with all defaults."""
        return asdict(self)

    def pretraining(self) -> dict[str, Any] | None:
        """All options of the run that makes the checkpoint, but the seed; None if there is no such run."""
        return None if self.pretrain is None else {**self.options, **self.pretrain}

    def check(self) -> None:
        """Raise InputError if any run's options are refused, before any of them starts."""
        runs = [(cell.name, cell.options) for cell in self.cells]
        if self.pretrain is not None:
            if not self.pretrain.get("max_steps"):
                raise InputError("pretrain needs max_steps of its own; the budget is that of the arms")
            runs.append(("pretrain", self.pretraining() or {}))
        for name, options in runs:
            try:
                Run.from_options({**options, "output_dir": "unused"})
            except InputError as error:
                raise InputError(f"'{name}' of the study '{self.name}': {error}") from None

    def _varied_arms(self) -> list[str]:
        for grid in self.vary:
            options = grid.get("options") if isinstance(grid, Mapping) else None
            if not isinstance(options, Mapping) or not all(isinstance(v, list) and v for v in options.values()):
                raise InputError("each entry of 'vary' needs 'options', a mapping from option to a list of values")
            if set(grid) - {"arms", "options"}:
                raise InputError(f"an entry of 'vary' has 'arms' and 'options', not {sorted(grid)}")
        return [arm for grid in self.vary for arm in grid.get("arms") or ()]

    def _cell(self, arm: str, factors: dict[str, Any]) -> Cell:
        options = merged(merged(dict(self.options), self.arms[arm]), factors)
        if "max_steps" in self.arms[arm] or "max_steps" in factors:
            raise InputError(f"the arm '{arm}' sets max_steps, which the budget does for all arms alike; leave it out")
        return Cell(arm, factors, options)


def merged(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with `more`, whose keys `a.b` set the entry b of the mapping a. Neither is changed."""
    found = dict(options)
    for key, value in more.items():
        outer, dot, inner = key.partition(".")
        found[outer] = merged(found.get(outer) or {}, {inner: value}) if dot else value
    return found
