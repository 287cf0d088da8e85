"""The one exception that means "the input is wrong, not the program".

Whoever raises it writes one line for a person: the file or value, what was expected, what to do.
The commands print that line to stderr and exit with status 2; Python callers may catch it as the
ValueError that it is.
"""


class UserError(ValueError):
    """Bad input: a missing file, an impossible option, a damaged run folder."""
