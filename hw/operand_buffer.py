"""OB: the int8 blocks that the matrix units multiply, in banks of which a window of blocks is read at once."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.buffer_memory import BufferMemory
from hw.dsp_group import ENTRY, delay
from hw.interfaces import BufferWrite
from hw.pipeline import fanned
from hw.spec.config import BLOCK, Config
from hw.spec.resources import buffer
from hw.spec.weights import WINDOW

BLOCK_BITS = 8 * BLOCK
WINDOW_LAYOUT = data.ArrayLayout(BLOCK_BITS, WINDOW)
READ_LATENCY = 3
"""Cycles from a read to its rotated window."""
BYTE = 8
"""Bits of the blocks that are rotated by an address of their own."""


class OperandBuffer(wiring.Component):
    """Block j lives in bank j mod banks (`Config.ob_banks`); a read of block a gives a window, blocks a .. a + 7.

    Every bank reads one block: the one of a .. a + banks - 1 that lives in it. Blocks wrap at ``ob_blocks``.

    A read with ``first`` and one with ``second`` a cycle later are two tokens' windows. They go out input by input, 16
    cycles long: each block of ``window`` then has in its low bits an entry for tables (`hw.dsp_group`), the values of
    both tokens at one input. One of another token may begin 16 cycles later; no other read may in between.

    Latency: ``latency`` cycles from ``en`` to ``window`` and ``own``; the first entry is there ``latency + 1`` cycles
    after ``first``. What is written in t is read by ``en`` in t + 1. Throughput: a window and a written word a cycle.
    Back-pressure: none. Reset: none; contents read 0 after power-up.

    Parameters: ``config``.

    Members: ``en``, ``addr``: first block to read; ``first``, ``second``: the read is for an entry's tokens; ``split``:
    unit u gets block addr + u (``addr`` a multiple of units) as its own, else block addr; ``window``: int8[8, 16];
    ``own``: int8[units, 16]; ``write``: the vector unit's port, in words of ``lanes`` int8.
    """

    latency = READ_LATENCY + 2

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "en": In(1),
                "first": In(1),
                "second": In(1),
                "addr": In(range(config.ob_blocks)),
                "split": In(1),
                "window": Out(WINDOW_LAYOUT),
                "own": Out(data.ArrayLayout(BLOCK_BITS, config.units)),
                "write": In(BufferWrite(config.ob_blocks // config.granules_per_word, config.lanes, 8)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        units, banks = self.config.units, self.config.ob_banks
        blocks = Signal(data.ArrayLayout(BLOCK_BITS, banks), reset_less=True)
        for bank in range(banks):
            m.d.sync += blocks[bank].eq(self._bank(m, bank))

        rotated = self._rotated(m, blocks)
        window = self._window(m, rotated)
        for block in range(WINDOW):
            m.d.comb += self.window[block].eq(delay(m, window[block], 1, f"window_{block}"))
        # As many banks as units: a split read starts at bank 0. More: its blocks all lie in the window.
        splits = fanned(m, self.split, READ_LATENCY + 1, units, "split")
        for unit, split in enumerate(splits):
            own = delay(m, blocks[unit], 1, f"own_{unit}") if units == banks else rotated[unit]
            own = Mux(split, delay(m, own, 1, f"split_{unit}"), window[0])
            m.d.comb += self.own[unit].eq(delay(m, own, 1, f"own_out_{unit}"))
        return m

    def _rotated(self, m, blocks):
        """The window's blocks in order, a cycle after the banks' blocks. Two choices, each of few: the group of WINDOW
        banks that each block may come of, then the place of the first in it."""
        banks = self.config.ob_banks
        first = self.addr[: (banks - 1).bit_length()]
        inner = (WINDOW - 1).bit_length()
        window = [[] for _ in range(WINDOW)]
        for byte, bank in enumerate(fanned(m, first, 2, BLOCK_BITS // BYTE, "first_bank")):
            here = [blocks[number].word_select(byte, BYTE) for number in range(banks)]
            near = [
                Cat(here[(number + start) % banks] for start in range(0, banks, WINDOW)).word_select(bank[inner:], BYTE)
                for number in range(2 * WINDOW - 1)
            ]
            for place, parts in enumerate(window):
                parts.append(Cat(near[place : place + WINDOW]).word_select(bank[:inner], BYTE))
        rotated = Signal(WINDOW_LAYOUT, reset_less=True)
        m.d.sync += [rotated[place].eq(Cat(parts)) for place, parts in enumerate(window)]
        return rotated

    def _window(self, m, rotated):
        """A window as it is, or the entries of two: their blocks shift by an input a cycle."""
        en, first, second = (
            delay(m, value, 1, name)
            for value, name in ((self.en, "en"), (self.first, "first"), (self.second, "second"))
        )
        plain = en & ~first & ~second
        firsts = fanned(m, first, READ_LATENCY - 1, WINDOW, "late_first")
        others = fanned(m, second | plain, READ_LATENCY - 1, WINDOW, "late_other")
        plain = delay(m, plain, READ_LATENCY - 1, "plain")
        of_entries = Signal(reset_less=True)
        m.d.sync += of_entries.eq(firsts[0] | (of_entries & ~plain))
        window = []
        for block in range(WINDOW):
            one, other = (Signal(BLOCK_BITS, name=f"{name}_{block}", reset_less=True) for name in ("one", "other"))
            late = delay(m, one[:8], 1, f"late_{block}")
            m.d.sync += [
                one.eq(Mux(firsts[block], rotated[block], one >> 8)),
                other.eq(Mux(others[block], rotated[block], other >> 8)),
            ]
            low = Mux(of_entries, Cat(late, other[:8]), other[: ENTRY.size])
            window.append(Cat(low, other[ENTRY.size :]))
        return window

    def _bank(self, m, bank):
        """One bank's memory: the block it reads, a cycle later."""
        banks, per_word = self.config.ob_banks, self.config.granules_per_word
        m.submodules[f"bank_{bank}"] = store = BufferMemory(buffer(self.config, "OB"))
        word, part = divmod(bank, per_word)
        bank_bits, word_bits = (banks - 1).bit_length(), (banks // per_word - 1).bit_length()
        wrapped = bank < self.addr[:bank_bits] if bank < banks - 1 else Const(0, 1)
        m.d.comb += [
            store.read_en.eq(self.en),
            store.read_addr.eq(self.addr[bank_bits:] + wrapped),
            store.write_en.eq(self.write.en & (self.write.addr[:word_bits] == word)),
            store.write_addr.eq(self.write.addr[word_bits:]),
            store.write_data.eq(self.write.data.as_value().word_select(part, BLOCK_BITS)),
        ]
        return store.read_data
