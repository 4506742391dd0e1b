"""The demo's results for people: one self-contained HTML page, and tables for the terminal."""

from .report import write_report
from .tables import demo_tables

__all__ = ["demo_tables", "write_report"]
