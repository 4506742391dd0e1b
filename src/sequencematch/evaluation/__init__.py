"""Measuring a trained model: accuracy with intervals, how it deletes, and readable transcripts."""

from .accuracy import Answers, Score, answer, score
from .decodings import METHODS, MODES, Completions, Decoding
from .measures import METRICS, Evaluation, Subject, measure_decoding, measure_model
from .questions import IsCorrect, Questions, make_questions
from .transcripts import Transcript, transcribe

__all__ = [
    "METHODS",
    "METRICS",
    "MODES",
    "Answers",
    "Completions",
    "Decoding",
    "Evaluation",
    "IsCorrect",
    "Questions",
    "Score",
    "Subject",
    "Transcript",
    "answer",
    "make_questions",
    "measure_decoding",
    "measure_model",
    "score",
    "transcribe",
]
