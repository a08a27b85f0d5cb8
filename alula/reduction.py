"""Visual-token reduction as the command line asks for it, turned into one for a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from alula.session import Flow
from hw.spec.errors import UserError
from ref_model.mask import BlockMask
from ref_model.reduction import Drop, Reduction, parse_drops, visual_places, visual_range


@dataclass(frozen=True)
class Asked:
    """Drops, and where the visual tokens of synthetic prompts lie (None: in the proportions of LLaVA's prompt)."""

    drops: tuple[Drop, ...]
    image_tokens: int | None = None
    image_start: int | None = None

    def check(self, flow: Flow, lengths: Sequence[int], mask: BlockMask | None) -> None:
        """UserError, before anything runs, for what no synthetic prompt of these lengths can do."""
        ranked = next((drop for drop in self.drops if drop.by_score), None)
        if ranked is not None and mask is not None:
            raise UserError(f"{ranked.option} ranks tokens by attention to all of them: leave --attention-mask out")
        for n in lengths:
            self.synthetic(flow, n)

    def synthetic(self, flow: Flow, n: int) -> Reduction:
        """For n synthetic tokens; UserError where they do not hold enough visual ones."""
        config = flow.model.config
        visual = n if config.vision is None else config.n_visual_tokens
        reduction = Reduction(*visual_range(n, visual, self.image_tokens, self.image_start), self.drops)
        reduction.check(n, flow.layers)
        return reduction

    def prompt(self, flow: Flow, ids: Sequence[int]) -> Reduction:
        """For a prompt with the tokens of one image."""
        reduction = Reduction(*visual_places(ids, flow.model.config.image_token_index), self.drops)
        reduction.check(len(ids), flow.layers)
        return reduction


def asked(
    keep_schedule: str | None = None,
    exit_layer: int | None = None,
    fastv: str | None = None,
    image_tokens: int | None = None,
    image_start: int | None = None,
) -> Asked | None:
    """What the options ask for; None without a mechanism."""
    drops = parse_drops(keep_schedule, exit_layer, fastv)
    return Asked(drops, image_tokens, image_start) if drops else None
