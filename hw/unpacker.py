"""Weight beats -> rounds of levels and indices: the stream format of `hw.spec.weights`, a beat a cycle."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import BEAT_BITS
from hw.pipeline import copies
from hw.round import BLOCKS, INDICES, N_GROUPS, ROUND_KIND, SCALES
from hw.spec.config import BLOCK
from hw.spec.weights import (
    BITS,
    HEADER_RUNS,
    HIGH_BITS,
    LOW_BITS,
    MAX_BUNDLE,
    NIBBLES,
    NONZEROS,
    QUARTERS,
    ROWS_A_QUARTER,
    RUN_BYTES,
    RUN_FIELDS,
    RUN_MAGIC,
    SHARED_FIELDS,
    WINDOW,
    code_beat,
    index_beats,
    next_odd,
    round_beats,
    round_blocks,
    single_slot,
)
from hw.weight_reader import BEAT

CELLS = BLOCK * BLOCK
QUARTER = CELLS // QUARTERS
SLOT_BITS = 8 * RUN_BYTES
SINGLE = NONZEROS.index(1)
MASKED = NONZEROS.index(8)
HALF = BLOCK // 2
NIBBLE = 4
COPIES = 4
"""Registers in place of one that serves all rows of a round, each for BLOCK / COPIES rows."""
WIDE = BITS.index(8)
assert WIDE == 0 and NONZEROS[0] == BLOCK, "no run: a descriptor of zeros reads as 8 bits and dense, like RAW"

ONE = "one"
"""The lowest bit of an odd level."""
KEPT = "kept"
"""The high bit that came with those of the round before."""


def _sources():
    """What each low bit of a quarter's cells is written with, a bit of the byte, ONE or KEPT: [quarter][bit][form].

    Forms: BITS, and behind them 3 bits whose high bit is in another beat.
    """
    table = []
    for quarter in range(QUARTERS):
        low, high = LOW_BITS[quarter], HIGH_BITS[quarter]
        forms = {
            8: range(NIBBLE),
            4: range(NIBBLE * NIBBLES[quarter], NIBBLE * NIBBLES[quarter] + NIBBLE),
            3: (ONE, *low, high),
            2: (ONE, *low, low[1]),
        }
        rows = [forms[bits] for bits in BITS] + [(ONE, *low, KEPT)]
        table.append([[row[bit] for row in rows] for bit in range(NIBBLE)])
    return table


SOURCES = _sources()
N_FORMS = len(BITS) + 1
CHOICE = data.ArrayLayout(data.ArrayLayout(2, NIBBLE), QUARTERS)
"""Each low cell bit's source, as its place among the distinct ones."""

SLOT = data.StructLayout(dict(RUN_FIELDS) | {"scales": SCALES})
HEADER_BEATS = MAX_BUNDLE // HEADER_RUNS
PART = data.StructLayout({"nonzeros": range(len(NONZEROS)), "wide": 1, "left": WINDOW, "scales": SCALES})
"""A complete round's run; wide: 8 bits; left: the window's blocks of it and of later rounds, RAW: block 0."""
COMMAND = data.StructLayout(
    {
        "choice": CHOICE,  # what is written into the low bits of the cells
        "codes": QUARTERS,  # the quarters that it brings codes for
        "top": QUARTERS,  # the quarters whose bit 3 it brings
        "high": QUARTERS,  # the quarters whose bits 4 .. 7 it brings, a byte's or the next 3-bit round's
        "halves": 2,  # the indices (a half: slots 0 .. 7, 8 .. 15) that it brings
        "masks": 1,  # it brings them as masks
    }
)
"""Where the contents of a beat go."""
USED = data.ArrayLayout(BLOCK, 2)
LEVELS = data.StructLayout(
    {
        "cells": data.ArrayLayout(8, CELLS),
        "indices": INDICES,
        "blocks": BLOCKS,
        "used": USED,
    }
)
"""cells: bytes, or levels in their low four bits, of [row][slot]; used: slots that hold weights, in even and in odd
quarters."""


def distinct(sources):
    """Every source once, in a fixed order: `CHOICE` counts in it."""
    return list(dict.fromkeys(sources))


def lookup(index, width, function):
    """A function of a small number as a table. Adders of a few bits would become carry chains."""
    return Array(Const(function(i), width) for i in range(1 << len(index)))[index]


def named(m, name, value):
    """The value as a signal, which makes it logic of its own."""
    signal = Signal(len(value), name=name)
    m.d.comb += signal.eq(value)
    return signal


def count_ones(m, name, mask):
    """How many bits of a nibble are set."""
    return named(m, name, lookup(mask, 3, int.bit_count))


def add_counts(m, name, width, a, b):
    """The low bits of the sum of two counts."""
    size = 1 << len(a)
    return named(m, name, lookup(Cat(a, b), width, lambda i: (i % size + i // size) % (1 << width)))


def nibble_of(m, name, n, first, before, ones):
    """The nibble of the n-th bit set: ``first`` or one of the two behind it.

    before, ones: how many bits are set ahead of the second of the three, and in it.
    """

    def number(i):
        ahead, inside = i & (1 << len(before)) - 1, i >> len(before)
        return first + (ahead <= n) + (ahead + inside <= n)

    return named(m, name, lookup(Cat(before, ones), 2, number))


def places_in(m, name, nibble, before):
    """The places in a nibble of the four set bits whose ranks are 0 .. 3 modulo 4, 3 for those that it lacks.

    before: how many bits are set ahead of the nibble, modulo 4; None: none are.
    """
    found = []
    for n in range(NIBBLE):
        index = nibble if before is None else Cat(nibble, before)
        found.append(named(m, f"{name}_{n}", lookup(index, 2, lambda i, n=n: _place(i & 15, (n - (i >> 4)) % 4))))
    return found


def _place(nibble, rank):
    places = [i for i in range(NIBBLE) if nibble >> i & 1]
    return places[rank] if rank < len(places) else NIBBLE - 1


class Header(wiring.Component):
    """The slots of a header, in LUT memory: four banks, a slot of each beat in each.

    Latency: a beat written in t is read from t + 1 on; ``o`` follows what is read at once. Throughput: a beat in and a
    slot out a cycle. Back-pressure, reset: none.

    Members: ``i``, ``row``, ``write``: a beat and its number in the header; ``bank``, ``o``: a slot, of the beat that
    ``row_0`` says if it is the beat's first, ``rows`` if not: one address has too many loads.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(BEAT_BITS),
                "row": In(range(HEADER_BEATS)),
                "write": In(1),
                "bank": In(range(HEADER_RUNS)),
                "row_0": In(range(HEADER_BEATS)),
                "rows": In(range(HEADER_BEATS)),
                "o": Out(SLOT),
            }
        )

    def elaborate(self, platform):
        m = Module()
        slots = []
        for bank in range(HEADER_RUNS):
            m.submodules[f"bank_{bank}"] = store = memory.Memory(shape=unsigned(SLOT_BITS), depth=HEADER_BEATS, init=[])
            write, read = store.write_port(), store.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(self.write),
                write.addr.eq(self.row),
                write.data.eq(self.i.word_select(bank, SLOT_BITS)),
                read.addr.eq(self.rows if bank else self.row_0),
            ]
            slots.append(read.data)
        m.d.comb += self.o.as_value().eq(Array(slots)[self.bank])
        return m


class RunSequencer(wiring.Component):
    """Follows headers, bundles and runs: what each beat is and which rounds it completes.

    ``run`` is the slot that is to come, of zeros while a header is awaited (or for a RAW block), ``following`` the one
    behind it: the bundle's next, its first for another batch, or the next bundle's first. It is looked up in the
    cycles of a run, which has two at least if its bundle has several runs.

    Latency: ``done``, ``kind`` and ``ahead`` with ``pop``; ``command``, ``part`` and ``part_valid`` one cycle later.
    Throughput: a beat a cycle. Back-pressure: none. Reset: awaits a header or a RAW block.

    Members: ``i``, ``pop``: a beat, taken in this cycle; ``command``: what to do with it; ``ahead``: the same, a cycle
    earlier; ``done``, ``kind``: it completes a round, and which; ``part``, ``part_valid``: the round's blocks, scales
    and form; ``error``: sticky, a slot that is no run or not of its bundle, a header of too many slots, a STREAM
    instruction's first beat or a RAW beat inside a header or a run, a STREAM beat inside a RAW block. After an error,
    rounds mean nothing.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(BEAT),
                "pop": In(1),
                "command": Out(COMMAND),
                "ahead": Out(COMMAND),
                "done": Out(1),
                "kind": Out(ROUND_KIND),
                "part": Out(PART),
                "part_valid": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        run, following = (Signal(SLOT, name=name, reset_less=True) for name in ("run", "following"))
        left, count, odd = Signal(WINDOW), Signal(3), Signal()
        row = Signal(range(HEADER_BEATS), name="header_row")
        in_run, payload, bundle_ends = (Signal(name=name) for name in ("in_run", "payload", "bundle_ends"))
        # No beat comes in the first cycle behind the reset, in which `run` is set to zeros.
        fresh, goes_on = Signal(init=1), named(m, "goes_on", self._goes_on())
        m.d.sync += fresh.eq(0)
        with m.If(fresh):
            m.d.sync += run.eq(0)
        last_beat = named(m, "last_beat", lookup(Cat(run.nonzeros, run.bits, odd), 3, self._last_beat))
        later = self._later(m, run, left)
        m.d.comb += [
            in_run.eq(run.magic != 0),
            payload.eq(in_run | self.i.raw | (count != 0)),
            self.done.eq(self.pop & payload & (count == last_beat)),
            bundle_ends.eq(~run.more & (later == 0)),
            self.kind.sparse.eq(run.nonzeros != 0),
            self.kind.raw.eq(~in_run),
            self.kind.window.eq(run.window),
            self.kind.step.eq(run.step),
            self.kind.more.eq(run.more),
            self.kind.last.eq(run.last & (later == 0)),
        ]
        collecting = self._collecting(m, payload, goes_on)
        self._walk(m, run, following, left, later, bundle_ends, payload, in_run, collecting, row, goes_on)
        with m.If(self.pop & payload):
            m.d.sync += count.eq(lookup(count, 3, lambda i: (i + 1) % 8))
        with m.If(self.done):
            behind = lookup(Cat(run.bits, odd), 1, lambda i: next_odd(BITS[i & 3], i >> 2))
            m.d.sync += [count.eq(0), odd.eq(in_run & ~bundle_ends & behind)]

        wrong = named(
            m,
            "wrong",
            Mux(
                payload,
                self.i.first | (in_run == self.i.raw) | collecting[0],
                self._bad_header(m, collecting[0], row, goes_on),
            ),
        )
        with m.If(self.pop & wrong):
            m.d.sync += self.error.eq(1)
        self._command(m, run, self.pop & payload, count)
        part, command = Signal(PART, reset_less=True), Signal(COMMAND, reset_less=True)
        m.d.comb += [self.part.eq(part), self.command.eq(command)]
        m.d.sync += [
            command.eq(self.ahead),
            self.part_valid.eq(self.done),
            part.nonzeros.eq(run.nonzeros),
            part.wide.eq(run.bits == WIDE),
            part.left.eq(left | ~in_run),
            part.scales.eq(run.scales),
        ]
        return m

    @staticmethod
    def _last_beat(key):
        """The number of a round's last beat, of Cat(nonzeros, bits, odd)."""
        nonzeros, bits, odd = key & 7, key >> 3 & 3, key >> 5
        return round_beats(BITS[bits], NONZEROS[nonzeros], odd) - 1 if nonzeros < len(NONZEROS) else 0

    def _later(self, m, run, left):
        """The bundle's blocks that are left, without those of the present batch."""
        later = []
        for i, bit in enumerate(left):
            ahead = left[:i]
            beyond = {taken: named(m, f"later_{i}_{taken}", _more_ones(ahead, taken - 1)) for taken in (1, 2, 4)}
            later.append(bit & Array(beyond.get(round_blocks(n), 0) for n in NONZEROS)[run.nonzeros])
        return named(m, "later", Cat(later))

    def _collecting(self, m, payload, goes_on):
        """Whether a header has begun that goes on: registers for the control, for `run`, and for `following`."""
        collecting = Signal()
        found = copies(m, Mux(self.pop & ~payload, goes_on, collecting), 3, "collecting", resets=True)
        m.d.comb += collecting.eq(found[0])
        return found

    def _walk(self, m, run, following, left, later, bundle_ends, payload, in_run, collecting, row, goes_on):
        """From slot to slot: the header's beats, then bundle by bundle."""
        m.submodules.header = header = Header()
        first, second = (data.View(SLOT, self.i.data.word_select(i, SLOT_BITS)) for i in range(2))
        at, bundle, next_at, end = (
            Signal(range(MAX_BUNDLE), name=name) for name in ("at", "bundle_at", "following_at", "last_slot")
        )
        look, over, again, lone, advance = (Signal(name=name) for name in ("look", "over", "again", "lone", "advance"))
        back, banks = Signal(), HEADER_RUNS.bit_length() - 1
        behind = named(m, "behind", Mux(look, Mux(back, bundle, at + 1), next_at + 1))
        m.d.comb += [
            header.i.eq(self.i.data),
            header.row.eq(row),
            header.write.eq(self.pop & ~payload),
            over.eq(bundle_ends & (at == end)),
            lone.eq(~run.more & (at == bundle)),
            back.eq(~run.more & again),
            # Of several runs, the one behind is looked up in the first cycle; that of one may end at once. The first
            # slot of a beat is behind one of the beat before, others are behind one of theirs.
            header.bank.eq(behind),
            header.row_0.eq(Mux(look, Mux(back, bundle[banks:], at[banks:] + 1), next_at[banks:] + 1)),
            header.rows.eq(Mux(look, Mux(back, bundle, at), next_at)[banks:]),
            advance.eq(self.done & in_run & (bundle_ends | ((run.nonzeros != 0) & ~lone))),
        ]
        # Known in time for the last run of several: the blocks that are left change with the first one of a batch.
        m.d.sync += again.eq(later != 0)
        with m.If(look):
            m.d.sync += [look.eq(0), next_at.eq(Mux(back, bundle, at + 1))]
        with m.If(advance):
            m.d.sync += [
                look.eq(~over & (following.nonzeros != 0) & (following.more | ~bundle_ends)),
                at.eq(next_at),
                next_at.eq(next_at + 1),
            ]
        with m.If(self.done & ~run.more):
            m.d.sync += left.eq(Mux(bundle_ends, following.blocks, later))
        with m.If(self.done & bundle_ends):
            m.d.sync += bundle.eq(next_at)
        with m.If(self.pop & ~payload):
            m.d.sync += [
                row.eq(Mux(goes_on, row + 1, 0)),
                end.eq(Cat(Const(HEADER_RUNS - 1, HEADER_RUNS.bit_length() - 1), row)),
                at.eq(0),
                bundle.eq(0),
            ]
            with m.If(goes_on & ~collecting[0]):
                m.d.sync += next_at.eq(0)
            with m.If(~goes_on):
                slot = data.View(SLOT, Mux(collecting[1], following.as_value(), first.as_value()))
                m.d.sync += [left.eq(slot.blocks), look.eq(slot.more), next_at.eq(1)]
        # What is written is chosen by a signal of each register's own: one for both has too many loads. A run is left
        # and looked up behind only while there is one.
        header_ends = self.pop & ~payload & ~goes_on
        with m.If(advance | header_ends):
            m.d.sync += run.eq(
                Mux(
                    in_run,
                    Mux(over, 0, following.as_value()),
                    Mux(collecting[1], following.as_value(), first.as_value()),
                )
            )
        with m.If(look | advance | header_ends | (self.pop & ~payload & ~collecting[0])):
            beat = Mux(goes_on, first.as_value(), second.as_value())
            m.d.sync += following.eq(Mux(payload | collecting[2], header.o.as_value(), beat))

    def _slots(self):
        """The beat's slots."""
        return [data.View(SLOT, self.i.data.word_select(i, SLOT_BITS)) for i in range(HEADER_RUNS)]

    def _goes_on(self):
        """Whether the header's next beat is one, too."""
        slots = self._slots()
        return Cat(slot.as_value().any() for slot in slots).all() & slots[-1].more

    def _bad_header(self, m, collecting, row, goes_on):
        """Whether a slot before the end of the header in ``i`` is no run, or none of the bundle that it is in."""
        before, slots = Signal(SLOT, reset_less=True), self._slots()
        alive, inside, bad = Const(1), collecting, self.i.first & collecting
        for slot, previous in zip(slots, [before, *slots[:-1]], strict=True):
            held = slot.as_value().any()
            other = Cat(getattr(slot, name) != getattr(previous, name) for name in SHARED_FIELDS).any()
            wrong = (
                (slot.magic != RUN_MAGIC)
                | (slot.blocks == 0)
                | (slot.nonzeros >= len(NONZEROS))
                | (slot.more & (slot.nonzeros == 0))
                | (inside & (other | (slot.step <= previous.step)))
            )
            bad |= alive & (held | inside) & wrong
            alive, inside = alive & held, slot.more
        with m.If(self.pop):
            m.d.sync += before.eq(slots[-1])
        return bad | (goes_on & (row == HEADER_BEATS - 1))

    def _command(self, m, run, active, count):
        """The command for the beat, a beat of indices or of codes."""
        command = self.ahead
        single, masked = run.nonzeros == SINGLE, run.nonzeros == MASKED
        key = Cat(count, run.nonzeros)
        is_codes = named(m, "is_codes", active & lookup(key, 1, lambda i: i & 7 >= self._n_indices(i >> 3)))
        is_indices = named(m, "is_indices", active & lookup(key, 1, lambda i: i & 7 < self._n_indices(i >> 3)))
        place = named(m, "place", lookup(key, 2, lambda i: (i & 7) - self._n_indices(i >> 3) & 3))
        apart = named(m, "apart", (run.bits == BITS.index(3)) & ~single)
        plane = named(m, "plane", is_codes & apart & (place == 1))
        m.d.comb += command.masks.eq(is_indices & masked)
        for half in range(2):
            m.d.comb += command.halves[half].eq(is_indices & ~masked & (single | (count == half)))
        for quarter in range(QUARTERS):
            beats = Array(code_beat(bits, n, quarter) for n in (BLOCK, 1) for bits in BITS)[Cat(run.bits, single)]
            brings = named(m, f"brings_{quarter}", is_codes & (place == beats))
            m.d.comb += [
                command.codes[quarter].eq(brings),
                command.top[quarter].eq(brings | plane),
                command.high[quarter].eq((brings & (run.bits == WIDE)) | plane),
            ]
        form = Mux(apart & (place == 0), N_FORMS - 1, run.bits)
        for quarter, bits in enumerate(SOURCES):
            for bit, sources in enumerate(bits):
                m.d.comb += command.choice[quarter][bit].eq(
                    Array(distinct(sources).index(source) for source in sources)[form]
                )

    @staticmethod
    def _n_indices(nonzeros):
        """Beats of indices, of the descriptor's number."""
        return index_beats(NONZEROS[nonzeros]) if nonzeros < len(NONZEROS) else 0


def _more_ones(mask, limit):
    """Whether more than ``limit`` bits of a mask of at most seven are set."""
    return lookup(mask, 1, lambda i: i.bit_count() > limit) if len(mask) > limit else Const(0)


class Unpacker(wiring.Component):
    """Collects the cells and indices of rounds, four bits or a byte a cell.

    Numeric contract: a cell's low four bits are the signed level of 4-, 3- and 2-bit codes; 8-bit codes are bytes.

    Latency: ``done`` and ``kind`` with the pop of the round's last beat; ``part`` one cycle, ``o`` two later, its
    indices and blocks three. Throughput: a beat a cycle. Back-pressure: none. Reset: awaits a header or a RAW block.

    Members: ``i``, ``pop``, ``done``, ``kind``, ``part``, ``error``: see :class:`RunSequencer`; ``o``, ``o_valid``: a
    round.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(BEAT),
                "pop": In(1),
                "done": Out(1),
                "kind": Out(ROUND_KIND),
                "error": Out(1),
                "part": Out(PART),
                "o": Out(LEVELS),
                "o_valid": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = sequencer = RunSequencer()
        beat, out = Signal(BEAT_BITS, reset_less=True), Signal(LEVELS, reset_less=True)
        m.d.comb += self.o.eq(out)
        m.d.sync += [beat.eq(self.i.data), self.o_valid.eq(sequencer.part_valid)]
        m.d.comb += [
            sequencer.i.eq(self.i),
            sequencer.pop.eq(self.pop),
            self.error.eq(sequencer.error),
            self.done.eq(sequencer.done),
            self.kind.eq(sequencer.kind),
            self.part.eq(sequencer.part),
        ]
        for quarter in range(QUARTERS):
            self._cells(m, beat, sequencer.command, quarter, out)
        self._indices(m, beat, sequencer, out)
        self._slots(m, out)
        return m

    def _cells(self, m, beat, command, quarter, out):
        """A quarter's cells, each from its byte.

        The high nibble is written as it lies: with 8 bits it is the code's, with a beat of high bits it keeps those of
        the next 3-bit round.
        """
        for n in range(QUARTER):
            cell, byte = out.cells[QUARTER * quarter + n], beat.word_select(n, 8)
            values = []
            for bit, sources in enumerate(SOURCES[quarter]):
                wires = {ONE: Const(1), KEPT: cell[NIBBLE + HIGH_BITS[quarter]]}
                choices = Array(wires[source] if source in wires else byte[source] for source in distinct(sources))
                values.append(choices[command.choice[quarter][bit]])
            with m.If(command.codes[quarter]):
                m.d.sync += cell[: NIBBLE - 1].eq(Cat(values[: NIBBLE - 1]))
            with m.If(command.top[quarter]):
                m.d.sync += cell[NIBBLE - 1].eq(values[NIBBLE - 1])
            with m.If(command.high[quarter]):
                m.d.sync += cell[NIBBLE:].eq(byte[NIBBLE:])

    def _indices(self, m, beat, sequencer, out):
        """A half's 16 rows of 8 slots at a time, from nibbles or masks, of which those that are absent are 0.

        Masks take two cycles, a block each: no beat of masks follows another at once.
        """
        command, ahead = sequencer.command, sequencer.ahead
        second, nibbles = Signal(BEAT_BITS // 2, reset_less=True), Signal(BEAT_BITS, reset_less=True)
        late = copies(m, command.masks, COPIES, "late")
        halves = copies(m, command.halves | Cat(command.masks, late[0]), COPIES, "halves")
        any_half = copies(m, ahead.halves.any(), COPIES, "any_half")
        any_mask = copies(m, ahead.masks | command.masks, COPIES, "any_mask")
        m.d.sync += second.eq(beat[BEAT_BITS // 2 :])
        for row in range(BLOCK):
            copy = row % COPIES
            m.d.sync += nibbles.word_select(row, HALF * NIBBLE).eq(
                Mux(any_half[copy], beat.word_select(row, HALF * NIBBLE), 0)
            )
            mask = Mux(late[copy], second.word_select(row, BLOCK), beat.word_select(row, BLOCK))
            places = self._places(m, f"row_{row}", named(m, f"mask_{row}", mask), any_mask[copy])
            for n, place in enumerate(places):
                index = named(m, f"index_{row}_{n}", nibbles.word_select(HALF * row + n, NIBBLE) | place)
                for half in range(2):
                    with m.If(halves[copy][half]):
                        m.d.sync += out.indices[row][HALF * half + n].eq(index)

    def _places(self, m, name, mask, valid):
        """`hw.spec.weights.mask_inputs` of a row's mask, one cycle later; 0 unless valid."""
        nibbles = [mask.word_select(i, NIBBLE) for i in range(BLOCK // NIBBLE)]
        ones = [count_ones(m, f"{name}_ones_{i}", nibble) for i, nibble in enumerate(nibbles[:-1])]
        before = [None, ones[0], add_counts(m, f"{name}_before_2", 4, ones[0], ones[1])]
        before.append(add_counts(m, f"{name}_before_3", 2, before[2][:2], ones[2][:2]))
        inside = []
        for i, (nibble, ahead) in enumerate(zip(nibbles, before, strict=True)):
            found = places_in(m, f"{name}_{i}", nibble, None if ahead is None else ahead[:2])
            inside.append([self._kept(m, place, valid) for place in found])
        places = []
        for n in range(HALF):
            first = n // NIBBLE  # the n-th of eight lies in this nibble or one of the next two
            number = nibble_of(m, f"{name}_{n}_nibble", n, first, before[first + 1], ones[first + 1])
            number = self._kept(m, number, valid)
            low = Array(inside[min(max(i, first), first + 2)][n % NIBBLE] for i in range(4))[number]
            places.append(Cat(low, number))
        return places

    @staticmethod
    def _kept(m, value, valid):
        """A register of the value, or of 0."""
        register = Signal(len(value), name=f"{value.name}_kept", reset_less=True)
        m.d.sync += register.eq(Mux(valid, value, 0))
        return register

    def _slots(self, m, out):
        """Which slots are used, and one cycle later each group's block."""
        part = self.part
        lower, upper = part.left[:NIBBLE], part.left[NIBBLE:]
        ones = count_ones(m, "left_lower", lower)
        count = add_counts(m, "left", 4, ones, count_ones(m, "left_upper", upper))
        in_lower, in_upper = places_in(m, "lower", lower, None), places_in(m, "upper", upper, ones[:2])
        places, held = [], []
        for n in range(WINDOW):
            held.append(named(m, f"held_{n}", lookup(count, 1, lambda i, n=n: i > n)))
            beyond = lookup(ones, 1, lambda i, n=n: i <= n)
            place = Cat(Mux(beyond, in_upper[n % NIBBLE], in_lower[n % NIBBLE]), beyond)
            places.append(Signal(range(WINDOW), name=f"block_{n}", reset_less=True))
            m.d.sync += places[-1].eq(place)
        nonzeros = Signal.like(part.nonzeros, reset_less=True)
        m.d.sync += [
            nonzeros.eq(part.nonzeros),
        ]
        for group in range(N_GROUPS):
            numbers = [group * round_blocks(n) // N_GROUPS for n in NONZEROS]
            m.d.sync += out.blocks[group].eq(Array(places[number] for number in numbers)[nonzeros])
            there = Array(held[number] for number in numbers)[part.nonzeros]
            for parity in range(2):
                row = parity * ROWS_A_QUARTER
                for slot in (2 * group, 2 * group + 1):
                    empty = Const(0) if slot == single_slot(row, group) else part.nonzeros == SINGLE
                    m.d.sync += out.used[parity][slot].eq(there & ~empty)
