"""Synthetic tasks: questions with one right answer, and the mistakes that are typical of them. No torch."""

from .arithmetic import AddOrSubInBase
from .base import Task, TextMistake, split
from .registry import TASKS, get_task
from .star import StarGraphs
from .tokenizer import build_tokenizer

__all__ = ["TASKS", "AddOrSubInBase", "StarGraphs", "Task", "TextMistake", "build_tokenizer", "get_task", "split"]
