"""Results for people: the report and tables of studies, sample completions, the model card."""

from .completions import STYLES, completions_markdown, completions_table, report_completions
from .loading import find_studies, load_study
from .model_card import write_model_card
from .report import write_report
from .study import StudyResults
from .terminal import study_tables

__all__ = [
    "STYLES",
    "StudyResults",
    "completions_markdown",
    "completions_table",
    "find_studies",
    "load_study",
    "report_completions",
    "study_tables",
    "write_model_card",
    "write_report",
]
