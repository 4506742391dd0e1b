"""From text to token ids: loading data sets and turning their columns into examples."""

from .examples import Example, start_token, tokenize_dataset
from .loading import load_splits

__all__ = ["Example", "load_splits", "start_token", "tokenize_dataset"]
