"""The one exception that bad input raises; the command line prints it as one sentence."""


class InputError(ValueError):
    """Bad input from the user: the message is one sentence that says what is wrong and what to do."""


def reason_of(error: Exception) -> str:
    """What another library's exception says in its first sentence, to quote inside one of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")
