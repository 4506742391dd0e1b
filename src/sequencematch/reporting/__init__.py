"""Results for people: the demo's page and tables, sample completions, the model card."""

from .completions import STYLES, completions_markdown, completions_table, report_completions
from .model_card import write_model_card
from .report import write_report
from .tables import demo_tables

__all__ = [
    "STYLES",
    "completions_markdown",
    "completions_table",
    "demo_tables",
    "report_completions",
    "write_model_card",
    "write_report",
]
