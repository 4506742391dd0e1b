"""SequenceMatch."""
