"""The HBM model's share of a channel's peak on public benchmarks' patterns, beside the public figures.

The public figures are Ramulator2's and DRAMsim3's for such a pseudo-channel; the sequential one also Shuhai's
measurement of a U280 (425 GB/s over 32 channels, arXiv 2005.04324). `tests/sim/test_hbm.py` holds every row to its
tolerance.
"""

from fractions import Fraction

import numpy as np

from hw.spec import hbm
from sim.hbm import commit, new_channel, place, serve

EVER = 1 << 60
BEATS = 1 << 16
WORDS = 20_000
DEPENDS = ("benchmarks/hbm.py", "hw/spec/hbm.py", "sim/hbm.py")


def measure() -> dict:
    """One entry a pattern."""
    runs = [
        {"pattern": name, "public_least": least, "public_largest": largest, "tolerance": tolerance, "share": found()}
        for name, (least, largest, tolerance, found) in FIGURES.items()
    ]
    return {"what": "share of the peak of one HBM2 pseudo-channel", "runs": runs}


class Channel:
    """A channel that is told everything at once. reads: (address, accepted, extra), writes: (cycle, address, words)."""

    def __init__(self, reads, writes=(), serve=serve, slots_a_cycle=Fraction(2)):
        reads, writes = (np.array(x, np.int64).reshape(-1, 3) for x in (reads, writes))
        self.h, self.n, self.serve = new_channel(slots_a_cycle), len(reads), serve
        self.reads = np.zeros((3, 1 << max(self.n - 1, 0).bit_length()), np.int64)
        self.reads[:, : self.n] = reads.T
        self.writes = np.zeros((1 << max(len(writes) - 1, 0).bit_length(), 3), np.int64)
        self.writes[: len(writes)] = writes
        self.h[hbm.TAIL] = self.writes_given = len(writes)
        self.arrivals = np.zeros(self.reads.shape[1], np.int64)

    def told(self, known=EVER, asked=None):
        """Cycle of every beat that is determined by `known`."""
        asked = self.n if asked is None else asked
        self.serve(self.h, asked, *self.reads, self.arrivals, self.writes, known)
        return self.arrivals[: self.h[hbm.SERVED]].tolist()


def in_blocks(rng, n_beats, size):
    """Addresses of n_beats in blocks of `size` beats that lie anywhere."""
    return (rng.integers(0, (1 << 22) // size, n_beats // size)[:, None] * size + np.arange(size)).reshape(-1)


def read_share(addresses):
    """Of the peak, when all of it is asked for at once."""
    reads = [(address, 0, 0) for address in addresses.tolist()]
    return len(reads) / Channel(reads).told()[-1]


def words_share(banks_and_rows, outstanding=2 * hbm.QUEUE_BEATS):
    """Of the peak, with so many words outstanding, in the memory alone."""
    h, left, done = new_channel(Fraction(2)), [0] * outstanding, 0
    for i, (bank, row) in enumerate(banks_and_rows):
        ready = left[i % outstanding]
        column, activate = place(h, bank, row, ready, ready, False)
        commit(h, bank, row, column, activate, False)
        done = left[i % outstanding] = max(done, column + hbm.READ_DONE)
    return len(banks_and_rows) / done


def sequential_words():
    return [(hbm.bank_of(i // 2, i % 2), hbm.row_of(i // 2)) for i in range(WORDS)]


def write_share():
    """Sequential writes, a beat a cycle: of the peak, from the first one's drain to the last."""
    channel = Channel([(0, BEATS, 0)], [(i, i, 3) for i in range(BEATS)])
    channel.told()
    return BEATS / ((channel.h[hbm.LAST_WRITE] - hbm.WRITE_EPOCH) / 2)


def mixed_share(size):
    """Reads and writes by turns in blocks of `size` beats that lie anywhere, at the rate that is served best."""

    def at(rate, n=BEATS // 2):
        addresses = in_blocks(np.random.default_rng(1), n, size).reshape(-1, size)
        cycles = (np.arange(n) / rate).astype(np.int64).reshape(-1, size)
        reads = [(a, t, 0) for a, t in zip(addresses[::2].flat, cycles[::2].flat, strict=True)]
        writes = [(t, a, 3) for a, t in zip(addresses[1::2].flat, cycles[1::2].flat, strict=True)]
        return n / max(Channel(reads, writes).told()[-1], n / rate)

    return max(at(rate / 100) for rate in range(60, 100, 2))


def random_share(size):
    return lambda: read_share(in_blocks(np.random.default_rng(size), BEATS, size))


def same_bank_share(words):
    return lambda: words_share([(0, i // words) for i in range(WORDS)])


def outstanding_share(n):
    return lambda: words_share(sequential_words(), n)


FIGURES = {
    # pattern: (least and largest public figure, tolerance, what the model gives)
    "sequential reads": (0.917, 0.918, 0.01, lambda: read_share(np.arange(BEATS))),
    "sequential writes": (0.914, 0.916, 0.01, write_share),
    "random rows, 64 B": (0.31, 0.46, 0.06, random_share(1)),
    "random rows, 128 B": (0.45, 0.61, 0.01, random_share(2)),
    "random rows, 256 B": (0.84, 0.87, 0.05, random_share(4)),
    "random rows, 512 B": (0.86, 0.90, 0.03, random_share(8)),
    "random rows, 1 KB": (0.88, 0.91, 0.01, random_share(16)),
    "random rows, 4 KB": (0.92, 0.92, 0.01, random_share(64)),
    "same bank, new row every 32 B": (0.042, 0.042, 0.02, same_bank_share(1)),
    "same bank, new row every 64 B": (0.084, 0.084, 0.02, same_bank_share(2)),
    "same bank, new row every 256 B": (0.250, 0.250, 0.02, same_bank_share(8)),
    "same bank, new row every 1 KB": (0.381, 0.381, 0.02, same_bank_share(32)),
    "1 word outstanding": (0.11, 0.11, 0.03, outstanding_share(1)),
    "4 words outstanding": (0.43, 0.43, 0.03, outstanding_share(4)),
    "8 words outstanding": (0.78, 0.78, 0.03, outstanding_share(8)),
    "16 words outstanding": (0.86, 0.86, 0.03, outstanding_share(16)),
    "32 words outstanding": (0.92, 0.92, 0.03, outstanding_share(32)),
    "reads and writes 1:1, 256 B": (0.55, 0.84, 0.01, lambda: mixed_share(4)),
    "reads and writes 1:1, 4 KB": (0.77, 0.87, 0.01, lambda: mixed_share(64)),
}
