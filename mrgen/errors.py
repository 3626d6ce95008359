"""The one exception that a user's mistake raises; commands print it as one line and exit with 1."""


class MrgenError(Exception):
    """Something outside mrgen (a file, an option, a setting) is not usable; the text says what to do."""
