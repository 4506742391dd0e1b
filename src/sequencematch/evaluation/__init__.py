"""Measuring a trained model: accuracy with intervals, how it deletes, and readable transcripts."""

from .accuracy import MODES, Score, checked_rows, evaluate_mode, score
from .transcripts import Transcript, transcribe

__all__ = ["MODES", "Score", "Transcript", "checked_rows", "evaluate_mode", "score", "transcribe"]
