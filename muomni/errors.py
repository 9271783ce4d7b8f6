"""The base class of every error that is the user's to mend: the command line prints it as one line."""


class UserError(Exception):
    """Bad input, settings or files. Its text is one line: what came, what was expected, the remedy."""


class ToldError(UserError):
    """What another process of a distributed run has told already: this one ends without a word."""

    def __init__(self, *, interrupted: bool) -> None:
        """interrupted: by a signal, which has an exit code of its own."""
        super().__init__()
        self.interrupted = interrupted
