"""Star graphs: find the path from the centre of a star to the end of one of its arms.

The task is that of Bachmann and Nagarajan, "The pitfalls of next-token prediction" (ICML 2024, arXiv 2403.06963):
the first step of the path needs the whole path, while every later step only follows an edge. The texts here are
shorter than theirs: a node is one character, and nothing stands between two edges.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from .base import TextMistake, check_rate, check_whole_number

NODE_NAMES = string.ascii_letters + string.digits
"""The characters that name nodes; a task uses the first `nodes` of them."""

_PROMPT = re.compile(r"((?:[A-Za-z0-9]{2})+)\|([A-Za-z0-9])([A-Za-z0-9])=")


@dataclass(frozen=True)
class StarGraphs:
    """Stars whose centre has `degree` arms of `length` nodes each; pairs of them mean stars of all sizes in between.

    The prompt lists the edges in random order, each as parent and child, then `|`, the start (always the centre),
    the goal (the end of an arm drawn uniformly) and `=`. The completion is the path without the start. For degree 3
    and length 2: the prompt `enhfnbvwehev|ew=` has the completion `vw`.

    Raises InputError if `degree` is below 2, `length` below 1, or the star has more than `nodes` nodes.
    """

    degree: int | tuple[int, int] = 3
    """Number of arms; or the smallest and the largest number, all of which are drawn equally often."""
    length: int | tuple[int, int] = 2
    """Nodes in an arm, the centre not counted: the length of the completion. Or the smallest and the largest one."""
    nodes: int = 26
    """Size of the pool that node names are drawn from, without replacement: at most 62."""
    goal: bool = True
    """Whether the prompt names the goal. If not, the start stands in its place and every arm is right: a task to
    pretrain on. It teaches to follow edges, which next-token training neglects where it can copy a goal to the end."""

    name: ClassVar[str] = "star"

    def __post_init__(self) -> None:
        if not isinstance(self.goal, bool):
            raise InputError(f"goal must be true or false, not {self.goal!r}")
        for name, least in (("degree", 2), ("length", 1)):
            low, high = _range(name, getattr(self, name))
            check_whole_number(name, low, least)
            check_whole_number(name, high, low)
        check_whole_number("nodes", self.nodes, 1, len(NODE_NAMES))
        degree, length = (_range(name, getattr(self, name))[1] for name in ("degree", "length"))
        needed = degree * length + 1
        if needed > self.nodes:
            remedy = f"nodes to at least {needed}" if needed <= len(NODE_NAMES) else "a smaller degree or length"
            raise InputError(f"{degree} arms of length {length} need {needed} nodes; set {remedy}")

    @property
    def alphabet(self) -> str:
        """Every character that the texts use."""
        return NODE_NAMES[: self.nodes] + "|="

    def sample(self, rng: np.random.Generator) -> tuple[str, str]:
        """Draw a star and a goal: the prompt and the path."""
        degree, length = (_draw(rng, size) for size in (self.degree, self.length))
        drawn = rng.permutation(self.nodes)[: degree * length + 1]
        start, *rest = (NODE_NAMES[index] for index in drawn)
        arms = ["".join(rest[i : i + length]) for i in range(0, len(rest), length)]
        edges = [parent + child for arm in arms for parent, child in zip(start + arm, arm, strict=False)]
        path = arms[rng.integers(degree)]
        shuffled = "".join(edges[i] for i in rng.permutation(len(edges)))
        return f"{shuffled}|{start}{path[-1] if self.goal else start}=", path

    def is_correct(self, prompt: str, completion: str) -> bool:
        """Whether `completion` is a right arm, found anew from the prompt. Raises InputError for a foreign prompt."""
        return completion in _solve(prompt)[0]

    def mistakes(self, prompt: str, completion: str, rate: float, rng: np.random.Generator) -> list[TextMistake]:
        """With probability `rate`, one whole wrong arm, drawn uniformly, before the right path.

        That the arm was wrong shows only at its end, where the node is not the goal: take all of it back then.
        Without a named goal no arm is wrong, and there are no mistakes.
        Raises InputError for a foreign prompt or a `rate` outside [0, 1].
        """
        check_rate(rate)
        _, wrong = _solve(prompt)
        if rng.random() >= rate or not wrong:
            return []
        return [TextMistake(0, wrong[rng.integers(len(wrong))])]

    def group(self, prompt: str) -> str:
        """The star's size, as in `degree 3, length 2`. Raises InputError for a foreign prompt."""
        right, wrong = _solve(prompt)
        return f"degree {len(right) + len(wrong)}, length {len(right[0])}"


def _range(name: str, value: Any) -> tuple[Any, Any]:
    """The smallest and the largest size. Raises InputError for what is neither a number nor a pair."""
    if not isinstance(value, list | tuple):
        return value, value
    if len(value) != 2:
        raise InputError(f"{name} must be a number, or the smallest and the largest one, not {value!r}")
    return value[0], value[1]


def _draw(rng: np.random.Generator, size: int | tuple[int, int]) -> int:
    """A size, without a random number where there is only one: the questions of a seed stay what they are."""
    return int(rng.integers(*size, endpoint=True)) if isinstance(size, list | tuple) else size


def _solve(prompt: str) -> tuple[list[str], list[str]]:
    """The arms that are right (one, or all where no goal is named) and those that are wrong."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise InputError(f"{prompt!r} is not a prompt of the star task, such as 'abbcadde|ae='")
    edges, start, goal = match.groups()
    children: dict[str, list[str]] = {}
    for i in range(0, len(edges), 2):
        children.setdefault(edges[i], []).append(edges[i + 1])
    arms = []
    for arm in children.get(start, []):
        while len(arm) < len(edges) and arm[-1] in children:
            arm += children[arm[-1]][0]
        arms.append(arm)
    right = arms if goal == start else [arm for arm in arms if arm[-1] == goal]
    if len(arms) < 2 or (goal != start and len(right) != 1):
        raise InputError(f"{prompt!r} is not a prompt of the star task: the goal must end one of several arms")
    return right, [arm for arm in arms if arm not in right]
