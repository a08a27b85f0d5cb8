"""Sizes that follow from a configuration: how wide rows are in every buffer and stream."""

from dataclasses import dataclass

from hw.spec import weights
from hw.spec.config import BLOCK, Config
from hw.spec.weights import ceil_div

from . import ir


@dataclass(frozen=True)
class Geometry:
    config: Config

    @property
    def gpw(self) -> int:
        """Granules (and operand blocks) in a vector word."""
        return self.config.granules_per_word

    def words(self, width: int) -> int:
        """Vector words of a row."""
        return ceil_div(width, self.config.lanes)

    def granules(self, width: int) -> int:
        """Granules of a row that starts on a word: VB, PB and aux rows; blocks of an OB row."""
        return self.words(width) * self.gpw

    def steps(self, n_out: int) -> int:
        return weights.output_blocks(n_out, self.config.units)

    def acc_granules(self, n_out: int) -> int:
        """Granules of one accumulator row of a linear layer."""
        return self.steps(n_out) * self.config.units

    def acc_words(self, n_out: int) -> int:
        return self.acc_granules(n_out) // self.gpw

    def streams(self, ops: list) -> list[tuple[ir.Linear, ...]]:
        """See `ir.streams`."""
        return ir.streams(ops, self.config.lanes)

    def sections(self, ops: list, stream: tuple[ir.Linear, ...], grouped: bool) -> tuple[int, ...]:
        """Output-block steps of the parts of a stream that one matrix instruction each multiplies, if its steps come in
        groups, which no instruction divides; else of the whole stream."""
        steps = self.steps(sum(op.n_out for op in stream))
        gated = next((op for op in ops if isinstance(op, ir.GatedMlp) and op.up in stream), None)
        if not grouped or gated is None:
            return (steps,)
        first = self.steps(gated.gate.n_out) if gated.gate in stream else 0
        return (*([first] if first else []), *ir.up_slices(steps - first, True))

    def kb(self, n_in: int) -> int:
        return weights.input_blocks(n_in)

    def slots(self, context: int) -> int:
        return weights.cache_slots(context, self.config.units)

    def cache_granules(self, context: int) -> int:
        """Granules (16 keys each) of a score row at full context."""
        return self.slots(context) * self.config.units

    @property
    def keys_per_slot_log2(self) -> int:
        return (BLOCK * self.config.units).bit_length() - 1

    @property
    def units_log2(self) -> int:
        return self.config.units.bit_length() - 1

    @property
    def gpw_log2(self) -> int:
        return self.gpw.bit_length() - 1
