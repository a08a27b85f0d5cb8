"""The two classes of failure: the user's and ours."""


class UserError(Exception):
    """Something the user can put right. The message is one line: the value, the limit, the unit, what to do."""


class InternalError(Exception):
    """A fault in alula itself (or in a tool it drives); the message says what was observed."""


def first_line(error: Exception) -> str:
    """What an error says first: messages of torch go on for pages."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")
