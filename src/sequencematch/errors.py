"""The one exception that bad input raises; the command line prints it as one sentence."""


class InputError(ValueError):
    """Bad input from the user: the message is one sentence that says what is wrong and what to do."""
