"""The base class of every error that is the user's to mend: the command line prints it as one line."""


class UserError(Exception):
    """Bad input, settings or files. Its text is one line: what came, what was expected, the remedy."""
