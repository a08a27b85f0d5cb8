"""Weight beats -> rounds of levels and indices: the stream format of `hw.spec.weights`, a beat a cycle."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import BEAT_BITS
from hw.round import BLOCKS, INDICES, N_GROUPS, ROUND_KIND, SCALES
from hw.spec.config import BLOCK, BLOCK_BEATS
from hw.spec.weights import (
    BITS,
    NONZEROS,
    RUN_BYTES,
    RUN_FIELDS,
    RUN_MAGIC,
    WINDOW,
    index_beats,
    round_beats,
    round_blocks,
)
from hw.weight_reader import BEAT

CELLS = BLOCK * BLOCK
QUARTERS = BLOCK_BEATS
SLOT_BITS = 8 * RUN_BYTES
SINGLE = NONZEROS.index(1)
MASKED = NONZEROS.index(8)
MASK_WEIGHTS = 8
NIBBLE = 4
WIDE = BITS.index(8)
assert WIDE == 0 and NONZEROS[0] == BLOCK, "no run: a descriptor of zeros reads as 8 bits and dense, like RAW"

SLOT = data.StructLayout(dict(RUN_FIELDS) | {"scales": SCALES})
PART = data.StructLayout({"nonzeros": range(len(NONZEROS)), "wide": 1, "left": WINDOW, "scales": SCALES})
"""A complete round's run; wide: 8 bits; left: the window's blocks of it and of later rounds."""
COMMAND = data.StructLayout({
    "bits": range(len(BITS)), "single": 1,      # how codes lie in the beat
    "quarters": QUARTERS,                       # the cells (a quarter: four rows) that it brings codes for
    "plane": 1,                                 # it brings high bits, for this round and the next
    "halves": 2,                                # the indices (a half: eight rows) that it brings
    "masks": 1,                                 # it brings them as masks
})
"""Where the contents of a beat go."""
LEVELS = data.StructLayout({
    "cells": data.ArrayLayout(8, CELLS), "indices": INDICES, "blocks": BLOCKS, "used": BLOCK, "sparse": 1,
})
"""cells: bytes, or levels in their low four bits, of [row][slot]; used: slots that hold weights."""


def counts_before(mask, step):
    """How many bits are set in the first 0, step, 2 * step .. bits of a mask, all of it included."""
    return [sum(mask[:end], start=Const(0)) for end in range(0, len(mask) + 1, step)]


def nth_set(m, mask, n_outputs, name):
    """Places of the first bits set in a mask, 0 for those that it lacks: first the nibble, then the place in it."""
    before = []
    for number, count in enumerate(counts_before(mask, NIBBLE)):
        before.append(Signal(range(len(mask) + 1), name=f"{name}_before_{number}"))
        m.d.comb += before[-1].eq(count)
    places = []
    for n in range(n_outputs):
        number = Signal(range(len(mask) // NIBBLE), name=f"{name}_nibble_{n}")
        m.d.comb += number.eq(sum((count <= n for count in before[1:-1]), start=Const(0)))
        offset = Array(count[:2] for count in before[:-1])[number]
        inside = Array(_place_inside(nibble, (n - start) % 4) for start in range(4) for nibble in range(16))
        low = inside[Cat(mask.word_select(number, NIBBLE), offset)]
        places.append(Mux(n < before[-1], Cat(Const(0, 2) | low, number), 0))
    return places


def _place_inside(nibble, n):
    """Place of the n-th bit set in a constant nibble."""
    places = [i for i in range(NIBBLE) if nibble >> i & 1]
    return places[n] if n < len(places) else 0


class RunSequencer(wiring.Component):
    """Follows headers and runs: what each beat is and which rounds it completes.

    The header shifts by a slot when a run ends, and a run's descriptor loses the blocks of finished rounds, so the
    lowest slot is always what is to come; one of zeros awaits a header (or is a RAW block's stand-in).

    Latency: ``done`` and ``kind`` with ``pop``; ``command``, ``part`` and ``part_valid`` one cycle later. Throughput: a
    beat a cycle. Back-pressure: none. Reset: awaits a header or a RAW block.

    Members: ``i``, ``pop``: a beat, taken in this cycle; ``command``: what to do with it; ``done``, ``kind``: it
    completes a round, and which; ``part``, ``part_valid``: the round's blocks, scales and form; ``error``: sticky, a
    slot that is no run, a STREAM instruction's first beat inside a run or a RAW block, a RAW beat inside a run, a
    STREAM beat inside a RAW block. After an error, rounds mean nothing.
    """

    def __init__(self):
        super().__init__({
            "i": In(BEAT), "pop": In(1), "command": Out(COMMAND), "done": Out(1), "kind": Out(ROUND_KIND),
            "part": Out(PART), "part_valid": Out(1), "error": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        header, count, odd = Signal(BEAT_BITS), Signal(3), Signal()
        run = data.View(SLOT, header[:SLOT_BITS])
        in_run, payload, last_round, wrong = (
            Signal(name=name) for name in ("in_run", "payload", "last_round", "wrong")
        )
        n_beats = Array(round_beats(BITS[key >> 1 & 3], NONZEROS[key >> 3], key & 1) if key >> 3 < len(NONZEROS) else 1
                        for key in range(64))[Cat(odd, run.bits, run.nonzeros)]
        following = self._following(run)
        m.d.comb += [
            in_run.eq(run.magic != 0), payload.eq(in_run | self.i.raw | (count != 0)),
            self.done.eq(self.pop & payload & (count + 1 == n_beats)), last_round.eq(following == 0),
            self.kind.sparse.eq(run.nonzeros != 0), self.kind.raw.eq(~in_run), self.kind.window.eq(run.window),
            self.kind.last.eq(run.last & last_round),
        ]
        with m.If(self.pop & payload):
            m.d.sync += count.eq(count + 1)
        with m.Elif(self.pop):
            m.d.sync += header.eq(self.i.data)
        with m.If(self.done):
            m.d.sync += [count.eq(0), odd.eq(in_run & ~last_round & ~odd), run.blocks.eq(following)]
            with m.If(in_run & last_round):
                m.d.sync += header.eq(header >> SLOT_BITS)

        m.d.comb += wrong.eq(Mux(payload, (self.i.first | (in_run == self.i.raw)), self._bad_header()))
        with m.If(self.pop & wrong):
            m.d.sync += self.error.eq(1)
        self._command(m, run, payload, count)
        m.d.sync += [
            self.part_valid.eq(self.done), self.part.nonzeros.eq(run.nonzeros), self.part.wide.eq(run.bits == WIDE),
            self.part.left.eq(run.blocks), self.part.scales.eq(run.scales),
        ]
        return m

    def _following(self, run):
        """The run's blocks without those of its present round."""
        taken = Array([round_blocks(n) for n in NONZEROS])[run.nonzeros]
        return Cat(bit & (rank >= taken) for bit, rank in zip(run.blocks, counts_before(run.blocks, 1), strict=False))

    def _bad_header(self):
        """Whether a slot before the end of the header in ``i`` is no run."""
        alive, bad = Const(1), Const(0)
        for at in range(0, BEAT_BITS, SLOT_BITS):
            word = self.i.data[at:at + SLOT_BITS]
            slot = data.View(SLOT, word)
            alive &= word.any()
            bad |= alive & ((slot.magic != RUN_MAGIC) | (slot.zero != 0) | (slot.blocks == 0)
                            | (slot.nonzeros >= len(NONZEROS)))
        return bad

    def _command(self, m, run, payload, count):
        """The command for the beat, a beat of indices or of codes."""
        command = Signal(COMMAND)
        single, masked = run.nonzeros == SINGLE, run.nonzeros == MASKED
        n_indices = Array(index_beats(n) for n in NONZEROS)[run.nonzeros]
        place, is_codes = Signal(2), Signal()
        active = self.pop & payload
        m.d.comb += [
            is_codes.eq(count >= n_indices), place.eq(count - n_indices),
            command.bits.eq(run.bits), command.single.eq(single), command.masks.eq(active & ~is_codes & masked),
            command.plane.eq(active & is_codes & ~single & (run.bits == BITS.index(3)) & (place == 1)),
        ]
        for half in range(2):
            m.d.comb += command.halves[half].eq(active & ~is_codes & ~masked & (single | (count == half)))
        for quarter in range(QUARTERS):
            by_bits = Array([place == Mux(single, quarter // 2, quarter), single | (place == quarter // 2),
                             place == 0, place == 0])
            m.d.comb += command.quarters[quarter].eq(active & is_codes & by_bits[run.bits])
        m.d.sync += self.command.eq(command)


class Unpacker(wiring.Component):
    """Collects the cells and indices of rounds, four bits or a byte a cell.

    Numeric contract: a cell's low four bits are the signed level of 4-, 3- and 2-bit codes; 8-bit codes are bytes.

    Latency: ``done`` and ``kind`` with the pop of the round's last beat; ``part`` one cycle, ``o`` two cycles later.
    Throughput: a beat a cycle. Back-pressure: none. Reset: awaits a header or a RAW block.

    Members: ``i``, ``pop``, ``done``, ``kind``, ``part``, ``error``: see :class:`RunSequencer`; ``o``, ``o_valid``: a
    round.
    """

    def __init__(self):
        super().__init__({
            "i": In(BEAT), "pop": In(1), "done": Out(1), "kind": Out(ROUND_KIND), "error": Out(1), "part": Out(PART),
            "o": Out(LEVELS), "o_valid": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = sequencer = RunSequencer()
        beat = Signal(BEAT_BITS, reset_less=True)
        m.d.sync += [beat.eq(self.i.data), self.o_valid.eq(sequencer.part_valid)]
        m.d.comb += [
            sequencer.i.eq(self.i), sequencer.pop.eq(self.pop), self.error.eq(sequencer.error),
            self.done.eq(sequencer.done), self.kind.eq(sequencer.kind), self.part.eq(sequencer.part),
        ]
        self._cells(m, beat, sequencer.command)
        self._indices(m, beat, sequencer.command)
        self._slots(m)
        return m

    def _cells(self, m, beat, command):
        """Every cell's code from where its format has it. Odd cells of N = 1 are unused: anything."""
        high = Signal(CELLS, reset_less=True)           # bits 2 of the next round's codes
        with m.If(command.plane):
            m.d.sync += high.eq(beat[CELLS:])
        size = CELLS // QUARTERS
        for quarter in range(QUARTERS):
            cells = self.o.cells.as_value().word_select(quarter, 8 * size)
            places = range(quarter * size, (quarter + 1) * size)
            values = Signal(8 * size, name=f"values_{quarter}")
            with m.Switch(Cat(command.single, command.bits)):
                for single in range(2):
                    for number, bits in enumerate(BITS):
                        with m.Case(2 * number + single):
                            m.d.comb += values.eq(Cat(self._cell(beat, high, bits, x, single and x % 2 == 0)
                                                      for x in places))
            with m.If(command.quarters[quarter]):
                m.d.sync += cells.eq(values)
            with m.If(command.plane):
                m.d.sync += Cat(cells[8 * n + 3] for n in range(size)).eq(~beat.word_select(quarter, size))

    def _cell(self, beat, high, bits, x, single):
        """The byte of cell ``x``; levels of 3- and 2-bit codes are odd: 2 * code - 7, 2 * code - 3."""
        place = x // 2 if single else x
        if bits >= 4:
            at = bits * place % BEAT_BITS
            return Cat(beat[at:at + bits], Const(0, 8 - bits))
        code = beat[2 * place:2 * place + 2]
        if bits == 2:
            return Cat(Const(1, 1), code[0], ~code[1], ~code[1], Const(0, 4))
        return Cat(Const(1, 1), code, ~(beat[CELLS + place] if single else high[x]), Const(0, 4))

    def _indices(self, m, beat, command):
        """Indices as they lie, or from masks: those of the first block, and one cycle later those of the second."""
        indices = self.o.indices
        late, second = Signal(), Signal(BEAT_BITS // 2, reset_less=True)
        masks = Signal(BEAT_BITS // 2)
        m.d.sync += [late.eq(command.masks), second.eq(beat[BEAT_BITS // 2:])]
        m.d.comb += masks.eq(Mux(late, second, beat[:BEAT_BITS // 2]))
        for row in range(BLOCK):
            half = row // (BLOCK // 2)
            with m.If(command.halves[half]):
                for slot in range(BLOCK):
                    x = BLOCK * row + slot
                    own = beat.word_select(x % (CELLS // 2), NIBBLE)
                    m.d.sync += indices[row][slot].eq(
                        own if slot % 2 else Mux(command.single, beat.word_select(x // 2, NIBBLE), own))
            places = nth_set(m, masks.word_select(row, BLOCK), MASK_WEIGHTS, f"row_{row}")
            for block, write in enumerate((command.masks & ~late, late)):
                with m.If(write):
                    m.d.sync += [indices[row][MASK_WEIGHTS * block + n].eq(place) for n, place in enumerate(places)]

    def _slots(self, m):
        """Each group's block, and which slots are used."""
        part = self.part
        m.d.sync += self.o.sparse.eq(part.nonzeros != 0)
        places = nth_set(m, part.left, N_GROUPS, "block")
        count = counts_before(part.left, WINDOW)[-1]
        for group in range(N_GROUPS):
            with m.Switch(part.nonzeros):
                for number, nonzeros in enumerate(NONZEROS):
                    with m.Case(number):
                        block = group * round_blocks(nonzeros) // N_GROUPS
                        there = Const(1) if nonzeros == BLOCK else count > block
                        m.d.sync += [
                            self.o.blocks[group].eq(places[block]), self.o.used[2 * group].eq(there),
                            self.o.used[2 * group + 1].eq(there if nonzeros > 1 else 0),
                        ]
