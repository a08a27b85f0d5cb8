"""A machine as a command is given it, and whether its card has room for it."""

from alula.output import percent
from hw.spec import cards
from hw.spec.config import Config, ConfigError


def over_card(config: Config) -> list[dict]:
    """What a configuration needs more of than its card has: kind, used, limit, share (above 1) and unit."""
    board = cards.card_of(config)
    return [
        {"kind": row.kind, "used": row.used, "limit": row.limit, "share": row.used / row.limit, "unit": row.unit}
        for row in board.budget(config)
        if row.used > row.limit
    ]


def _unit(row: dict) -> str:
    return row["unit"].partition(" (")[0]


def misfit(config: Config) -> str | None:
    """One line for a machine that its card cannot hold; None if it can."""
    board = cards.card_of(config)
    if over := over_card(config):
        told = ", ".join(
            f"{row['used']:,.10g} of {row['limit']:,} {_unit(row)} ({percent(row['share'])})" for row in over
        )
        return f"{config.name} does not fit {board.name}: it needs {told}. It can be simulated, but not built"
    try:
        board.check(config)
    except ConfigError as error:
        return f"{error}. It can be simulated, but not built"
    return None
