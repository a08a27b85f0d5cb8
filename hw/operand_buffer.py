"""OB: the int8 blocks that the matrix units multiply, in banks of which a window of blocks is read at once."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.buffer_memory import BufferMemory
from hw.dsp_group import delay
from hw.interfaces import BufferWrite
from hw.spec.config import BLOCK, Config
from hw.spec.resources import buffer
from hw.spec.weights import WINDOW

BLOCK_BITS = 8 * BLOCK
WINDOW_LAYOUT = data.ArrayLayout(BLOCK_BITS, WINDOW)


class OperandBuffer(wiring.Component):
    """Block j lives in bank j mod banks (`Config.ob_banks`); a read of block a gives a window, blocks a .. a + 7.

    Every bank reads one block: the one of a .. a + banks - 1 that lives in it. Blocks wrap at ``ob_blocks``.

    Latency: ``latency`` cycles from ``en`` to ``window`` and ``own``. What is written in t is read by ``en`` in t + 1.
    Throughput: a window and a written word a cycle. Back-pressure: none. Reset: none; contents read 0 after power-up.

    Parameters: ``config``.

    Members: ``en``, ``addr``: first block to read; ``split``: unit u gets block addr + u (``addr`` a multiple of units)
    as its own, else block addr; ``window``: int8[8, 16]; ``own``: int8[units, 16]; ``write``: the vector unit's port,
    in words of ``lanes`` int8.
    """

    latency = 4

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "en": In(1),
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

        rotated = Signal(WINDOW_LAYOUT, reset_less=True)
        low = self.addr[: (banks - 1).bit_length()]
        for place in range(WINDOW):
            bank = delay(m, (low + place)[: len(low)], 2, f"bank_of_{place}")
            m.d.sync += rotated[place].eq(blocks.as_value().word_select(bank, BLOCK_BITS))
        m.d.sync += self.window.eq(rotated)

        # As many banks as units: a split read starts at bank 0. More: its blocks all lie in the window.
        split = delay(m, self.split, 3, "split")
        for unit in range(units):
            own = delay(m, blocks[unit], 1, f"own_{unit}") if units == banks else rotated[unit]
            m.d.sync += self.own[unit].eq(Mux(split, own, rotated[0]))
        return m

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
