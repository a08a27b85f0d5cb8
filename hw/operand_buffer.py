"""OB: the int8 blocks that the matrix units multiply, in one bank a unit."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.dsp_group import delay
from hw.interfaces import BufferWrite
from hw.spec.config import BLOCK, Config

BLOCK_BITS = 8 * BLOCK


class OperandBuffer(wiring.Component):
    """Block j lives in bank j mod units; a read gives either one block to every unit, or a row of banks, one to each.

    Latency: ``latency`` cycles from ``en`` to ``o``. What is written in t is read by ``en`` in t + 1. Throughput: a
    read and a written word a cycle. Back-pressure: none. Reset: none; contents read 0 after power-up.

    Parameters: ``config``.

    Members: ``en``, ``addr``: block to read; ``split``: unit u gets block addr + u (``addr`` a multiple of units), else
    all get block addr; ``o``: int8[units, 16]; ``write``: the vector unit's port, in words of ``lanes`` int8.
    """

    latency = 4

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "en": In(1), "addr": In(range(config.ob_blocks)), "split": In(1),
            "o": Out(data.ArrayLayout(BLOCK_BITS, config.units)),
            "write": In(BufferWrite(config.ob_blocks // config.granules_per_word, config.lanes, 8)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        bank_bits = (config.units - 1).bit_length()
        word_bits = (config.drain_cycles_a_row - 1).bit_length()
        blocks = []
        for bank in range(config.units):
            m.submodules[f"bank_{bank}"] = store = memory.Memory(
                shape=unsigned(BLOCK_BITS), depth=config.ob_blocks // config.units, init=[])
            write, read = store.write_port(), store.read_port()
            word, part = divmod(bank, config.granules_per_word)
            m.d.comb += [
                read.en.eq(self.en), read.addr.eq(self.addr[bank_bits:]),
                write.en.eq(self.write.en & (self.write.addr[:word_bits] == word)),
                write.addr.eq(self.write.addr[word_bits:]),
                write.data.eq(self.write.data.as_value().word_select(part, BLOCK_BITS)),
            ]
            blocks.append(delay(m, read.data, 1, f"block_{bank}"))
        chosen = delay(m, self.addr[:bank_bits], 2, "chosen") if bank_bits else Const(0, 1)
        one = delay(m, Cat(blocks).word_select(chosen, BLOCK_BITS), 1, "one")
        split = delay(m, self.split, 3, "split")
        for unit, block in enumerate(blocks):
            own = delay(m, block, 1, f"own_{unit}")
            m.d.comb += self.o[unit].eq(delay(m, Mux(split, own, one), 1, f"o_{unit}"))
        return m
