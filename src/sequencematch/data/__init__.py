"""From text and conversations to token ids: loading data sets and turning their columns into examples."""

from .examples import Example, start_token
from .loading import load_splits
from .tokenize import tokenize_dataset
from .tokenizer_options import apply_tokenizer_options

__all__ = ["Example", "apply_tokenizer_options", "load_splits", "start_token", "tokenize_dataset"]
