"""The `sequencematch` command: train, generate, evaluate, demo."""
