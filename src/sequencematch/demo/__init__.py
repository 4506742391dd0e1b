"""The demo: two tasks, four arms each, trained with equal steps, evaluated on the same questions, reported."""

from .recipes import Recipe, load_recipes
from .run import run_demo

__all__ = ["Recipe", "load_recipes", "run_demo"]
