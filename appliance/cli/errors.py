"""What commands do with errors that come out of task groups."""


def first_error(error: Exception) -> Exception:
    """The error itself, or the first one in a task group's collection."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
