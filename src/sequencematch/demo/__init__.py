"""The demo: two studies of four arms each, with equal steps, on the same questions, and one report."""

from .run import TASKS, demo_studies, run_demo

__all__ = ["TASKS", "demo_studies", "run_demo"]
