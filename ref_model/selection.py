"""How many visual tokens a selection keeps: shared by golden model, host and command line."""

import math

from hw.spec.errors import UserError

STRATEGIES = ("rank", "row")


def grid_side(n_patches: int) -> int:
    """Patches of a row of the square grid."""
    return math.isqrt(n_patches)


def items(keep: int | None, strategy: str, n_patches: int) -> tuple[int, int]:
    """(what to keep, patches of each): single patches, or whole rows of the grid; 0 of them for no selection."""
    if strategy not in STRATEGIES:
        raise UserError(f"unknown selection strategy {strategy!r}: choose {' or '.join(STRATEGIES)}")
    if keep is None:
        return 0, 1
    if not 1 <= keep <= n_patches:
        raise UserError(f"{keep} visual tokens to keep is outside 1..{n_patches}, the patches of an image")
    side = grid_side(n_patches)
    if strategy == "rank":
        return keep, 1
    if keep < side:
        raise UserError(
            f"{keep} visual tokens are less than a row of {side} patches: keep {side} or more, or choose rank"
        )
    return keep // side, side


__all__ = ["STRATEGIES", "grid_side", "items"]
