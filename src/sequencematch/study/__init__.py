"""Studies: grids of training runs with seeds, equal budgets and statistics, from one YAML file."""

from .budget import Budget
from .miniature import miniature
from .run import jobs_of, run_studies
from .spec import Cell, Study

__all__ = ["Budget", "Cell", "Study", "jobs_of", "miniature", "run_studies"]
