"""From text to token ids: loading data sets and turning their columns into examples."""

from .examples import Example, tokenize_dataset
from .loading import load_splits

__all__ = ["Example", "load_splits", "tokenize_dataset"]
