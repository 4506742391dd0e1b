"""Tasks by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import InputError
from .arithmetic import AddOrSubInBase
from .base import Task
from .star import StarGraphs

TASKS: dict[str, type[StarGraphs] | type[AddOrSubInBase]] = {task.name: task for task in (StarGraphs, AddOrSubInBase)}
"""The task that each name stands for."""


def get_task(name: str, **options: Any) -> Task:
    """The task called `name`, with the options of its class.

    Raises InputError if there is no such task or option, or an option's value is not allowed.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; choose one of {', '.join(sorted(TASKS))}")
    known = [field.name for field in fields(TASKS[name])]
    for option in options:
        if option not in known:
            raise InputError(f"the {name} task has no option {option!r}; its options are {', '.join(known)}")
    return TASKS[name](**options)
