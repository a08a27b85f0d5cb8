"""Random weight streams, caches and MX instructions, and what NumPy says of them."""

from dataclasses import dataclass

import numpy as np

from hw.spec.config import BEAT_BYTES
from hw.spec.isa import MxMode, StreamFormat
from hw.spec.weights import (
    BITS,
    BLOCK,
    HEADER_RUNS,
    MAX_SCALE,
    NONZEROS,
    WINDOW,
    Run,
    ceil_div,
    level,
    round_blocks,
)
from tests.hw.matrix_model import Mx, Rd
from tests.hw.stream_model import encode_codes, encode_indices, used_slots

RAW, STREAM = StreamFormat.RAW, StreamFormat.STREAM
SPLIT_N, SPLIT_K = MxMode.SPLIT_N, MxMode.SPLIT_K


@dataclass(frozen=True)
class Product:
    """What one MX instruction is to do. ``act`` and ``act_stride`` None: drawn. ``n_outer``: runs of beats that RD
    reads its stream in; of a STREAM the first product's counts. ``times``: how often (``ob`` steps each). ``bits``,
    ``nonzeros``: what its stream draws from; ``groups``: at most that many kinds a window; ``rounds``: at most so many
    of each."""

    mode: MxMode
    fmt: StreamFormat
    n_rows: int
    kb: int
    ob: int
    n_outer: int = 1
    act: int | None = None
    act_stride: int | None = None
    bits: tuple[int, ...] = BITS
    nonzeros: tuple[int, ...] = NONZEROS
    groups: int = 3
    rounds: int = 4
    times: int = 1

    @property
    def steps(self) -> int:
        return self.times * self.ob


class Content:
    """A run with random codes and indices."""

    def __init__(self, rng, run: Run):
        self.run = run
        self.m = max(run.nonzeros, 2)
        count = len(run.rounds())
        self.codes = rng.integers(0, 1 << run.bits, (count, BLOCK, BLOCK))
        if run.bits == 8:
            self.codes[self.codes == 128] = 127
        self.indices = rng.integers(0, BLOCK, (count, BLOCK, BLOCK))
        if run.nonzeros == 8:
            for places in self.indices.reshape(-1, 8):
                places[:] = np.sort(rng.permutation(BLOCK)[:8])
        elif run.nonzeros == BLOCK:
            self.indices[:] = np.arange(BLOCK)

    def add_to(self, matrix):
        """matrix: int64[16, inputs] (+)= the run."""
        run = self.run
        for number, blocks in enumerate(self.run.rounds()):
            for row in range(BLOCK):
                for slot in used_slots(run, len(blocks), row):
                    code = int(self.codes[number, row, slot])
                    weight = level(code, run.bits) * (run.scales[row] if run.bits < 8 else 1)
                    block = WINDOW * run.window + blocks[slot // self.m]
                    place = self.indices[number, row, slot]
                    matrix[row, BLOCK * block + place] += weight

    def round_beats(self, number) -> list[bytes]:
        body = encode_indices(self.run, self.indices[number]) + encode_codes(self.run, self.codes, number)
        return [body[at : at + BEAT_BYTES] for at in range(0, len(body), BEAT_BYTES)]


class Stream:
    """One unit's beats, and which of them complete a round."""

    def __init__(self):
        self.beats: list[bytes] = []
        self.completes: list[bool] = []

    def append(self, beat: bytes, completes=False):
        assert len(beat) == BEAT_BYTES
        self.beats.append(beat)
        self.completes.append(completes)

    def append_round(self, beats: list[bytes]):
        for number, beat in enumerate(beats):
            self.append(beat, number == len(beats) - 1)

    def append_runs(self, rng, contents: list[Content]):
        """Runs under headers of one to four, with padding between them."""
        at = 0
        while at < len(contents):
            if rng.random() < 0.2:
                self.append(bytes(BEAT_BYTES))
            together = contents[at : at + int(rng.integers(1, HEADER_RUNS + 1))]
            self.append(b"".join(each.run.encode() for each in together).ljust(BEAT_BYTES, b"\0"))
            for each in together:
                for number in range(len(each.codes)):
                    self.append_round(each.round_beats(number))
            at += len(together)


class Workload:
    """Random channels, operands and instructions: ``rd``, ``mx``, and the accumulator buffer that they leave.

    ``shapes``: the products of each RD instruction.
    """

    def __init__(self, config, shapes, seed):
        self.config = config
        rng = self.rng = np.random.default_rng(seed)
        self.operands = rng.integers(-128, 128, (config.ob_blocks, BLOCK)).astype(np.int8)
        self.expected = np.zeros((config.ab_granules, BLOCK), np.int64)
        self.rd, self.mx = [], []
        self.completes = [[] for _ in range(config.units)]
        self.at, self.dst = 5, 0
        memory = [[bytes(BEAT_BYTES * self.at)] for _ in range(config.units)]
        for products in shapes:
            streams = [Stream() for _ in range(config.units)]
            if products[0].fmt == STREAM:
                contents = [[] for _ in range(config.units)]
                for product in products:
                    self._stream_product(product, contents)
                for stream, runs in zip(streams, contents, strict=True):
                    stream.append_runs(rng, runs)
            else:
                for product in products:
                    self._raw_product(product, streams)
            self._read(products[0], streams, memory)
        self.channels = [np.frombuffer(b"".join(parts), np.uint8).copy() for parts in memory]

    def _read(self, product, streams, memory):
        """The RD instruction: streams padded to one length, cut in ``n_outer`` pieces with gaps between them."""
        n_beats = ceil_div(max(len(stream.beats) for stream in streams), product.n_outer) * product.n_outer
        inner, gap = n_beats // product.n_outer, 3
        for stream, completes, parts in zip(streams, self.completes, memory, strict=True):
            assert product.fmt == STREAM or len(stream.beats) == n_beats
            while len(stream.beats) < n_beats:
                stream.append(bytes(BEAT_BYTES))
            completes += stream.completes
            for at in range(0, n_beats, inner):
                parts += [*stream.beats[at : at + inner], self.rng.bytes(BEAT_BYTES * gap)]
        self.rd.append(Rd(self.at, product.n_outer, inner, inner + gap, product.fmt))
        self.at += product.n_outer * (inner + gap)

    def _raw_product(self, product, streams):
        n, ob, kb = self.config.units, product.steps, product.kb
        weights = self.rng.integers(-127, 128, (n, ob, kb, BLOCK, BLOCK)).astype(np.int8)
        for unit, stream in enumerate(streams):
            for block in weights[unit].reshape(-1, BLOCK * BLOCK):
                body = block.tobytes()
                stream.append_round([body[at : at + BEAT_BYTES] for at in range(0, len(body), BEAT_BYTES)])
        matrices = weights.astype(np.int64).transpose(0, 1, 3, 2, 4)  # unit, step, channel, block, input
        self._product(product, matrices, [(False, k == kb - 1) for k in range(kb)] * ob)

    def _stream_product(self, product, contents):
        matrices = np.zeros((self.config.units, product.steps, BLOCK, product.kb, BLOCK), np.int64)
        kinds = []
        for j in range(product.steps):
            plan = self._plan(product)
            kinds += [(sparse, False) for _, sparse, count in plan for _ in range(count)]
            kinds[-1] = kinds[-1][0], True
            for unit, runs in enumerate(contents):
                for number, (window, sparse, count) in enumerate(plan):
                    for content in self._runs(product, window, sparse, count, number == len(plan) - 1):
                        runs.append(content)
                        content.add_to(matrices[unit, j].reshape(BLOCK, -1))
        self._product(product, matrices, kinds)

    def _plan(self, product):
        """A step's windows, kinds and rounds, alike in all units: (window, sparse, rounds)."""
        rng = self.rng
        order = [int(window) for window in rng.permutation(ceil_div(product.kb, WINDOW))]
        kinds = sorted({nonzeros < BLOCK for nonzeros in product.nonzeros})
        return [
            (window, bool(rng.choice(kinds)), int(rng.integers(1, product.rounds + 1)))
            for window in order[: int(rng.integers(1, len(order) + 1))]
            for _ in range(int(rng.integers(1, product.groups + 1)))
        ]

    def _runs(self, product, window, sparse, count, last):
        """One unit's runs for ``count`` rounds of a kind: any (bits, N) of it."""
        rng, there = self.rng, min(WINDOW, product.kb - WINDOW * window)
        while count:
            bits = int(rng.choice(product.bits))
            nonzeros = int(rng.choice([n for n in product.nonzeros if (n < BLOCK) == sparse]))
            each = round_blocks(nonzeros)
            n_rounds = int(rng.integers(1, min(count, ceil_div(there, each)) + 1))
            n_blocks = int(rng.integers((n_rounds - 1) * each + 1, min(n_rounds * each, there) + 1))
            count -= n_rounds
            most = MAX_SCALE.get(bits, 0)
            scales = tuple(int(x) for x in rng.choice([rng.integers(-most, most + 1, BLOCK), np.full(BLOCK, most)]))
            blocks = sum(1 << int(i) for i in rng.permutation(there)[:n_blocks])
            yield Content(rng, Run(bits, nonzeros, window, blocks, last and not count, scales))

    def _product(self, product, matrices, kinds):
        """The MX instruction, and what it adds up. matrices: int64[unit, step, channel, block, input]."""
        config, rng, mode = self.config, self.rng, product.mode
        n, kb, per_word = config.units, product.kb, config.granules_per_word
        granules = product.ob * (1 if mode == SPLIT_K else n)
        align = n if mode == SPLIT_K else 1
        act, stride = product.act, product.act_stride
        if act is None:
            act = int(rng.integers(0, 8)) * align
        if stride is None:
            stride = ceil_div(kb * align, align) * align + align
        dst_stride = granules + 1 if mode == SPLIT_K else (ceil_div(granules, per_word) + 1) * per_word
        dst = self.dst if mode == SPLIT_K else ceil_div(self.dst, per_word) * per_word
        act_out, dst_out = int(rng.integers(0, 4)) * align, product.n_rows * dst_stride
        self.mx.append(
            Mx(
                act,
                stride,
                product.n_rows,
                kb,
                product.ob,
                dst,
                dst_stride,
                mode,
                product.times,
                act_out,
                dst_out,
                rounds=kinds,
            )
        )
        self.dst = dst + product.times * dst_out
        assert self.dst <= config.ab_granules
        for o in range(product.times):
            steps = matrices[:, o * product.ob : (o + 1) * product.ob]
            for r in range(product.n_rows):
                self._row(product, steps, act + o * act_out + r * stride, dst + o * dst_out + r * dst_stride)

    def _row(self, product, matrices, act, dst):
        """Sums of one row, with its operand blocks from ``act`` on, to granules from ``dst`` on."""
        n, kb, split_k = self.config.units, product.kb, product.mode == SPLIT_K
        for unit in range(n):
            places = act + (n * np.arange(kb) + unit if split_k else np.arange(kb))
            sums = np.einsum("jckx,kx->jc", matrices[unit], self.operands[places % self.config.ob_blocks].astype(int))
            for j in range(product.ob):
                self.expected[dst + (j if split_k else j * n + unit)] += sums[j]
