"""Random weight streams, caches and MX instructions, and what NumPy says of them."""

import random
from dataclasses import dataclass, replace

import numpy as np

from compiler.stream import encode, group_of
from hw.spec.config import BEAT_BYTES
from hw.spec.isa import MxMode, StreamFormat
from hw.spec.weights import BITS, BLOCK, NONZEROS, WINDOW, ceil_div, output_blocks, round_blocks
from tests.hw.matrix_model import Mx, Rd
from tests.hw.stream_model import Content, Round, decode_raw, decode_stream, encode_stream, random_bundle

RAW, STREAM = StreamFormat.RAW, StreamFormat.STREAM
SPLIT_N, SPLIT_K = MxMode.SPLIT_N, MxMode.SPLIT_K


@dataclass(frozen=True)
class Product:
    """What one MX instruction is to do. ``act`` and ``act_stride`` None: drawn. ``n_outer``: runs of beats that RD
    reads its stream in; of a STREAM the first product's counts. ``times``: turns (``ob`` steps each); ``n_last``,
    ``group``: the MX fields. ``bits``, ``nonzeros``: what its stream draws from; ``bundles``: at most so many plans a
    window and group; ``rounds``: at most so many batches of each."""

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
    bundles: int = 3
    rounds: int = 4
    times: int = 1
    n_last: int = 0
    group: int = 0

    def mx(self, act, act_stride, dst, dst_stride, act_out) -> Mx:
        return Mx(
            act,
            act_stride,
            self.n_rows,
            self.kb,
            self.ob,
            dst,
            dst_stride,
            self.mode,
            self.times,
            act_out,
            self.n_rows * dst_stride,
            self.n_last,
            self.group,
        )


@dataclass(frozen=True)
class Plan:
    """Batches that all units have at the same place: of these steps of the group, ``rounds`` of them one after the
    other. last: they end the group."""

    window: int
    sparse: bool
    steps: tuple[int, ...]
    rounds: int
    last: bool = False


class Workload:
    """Random channels, operands and instructions: ``rd``, ``mx``, and the accumulator buffer that they leave.

    ``shapes``: the products of each RD instruction. ``kinds``: of every round, alike in all units; ``completes``: of
    every unit's beats, whether it is the last of a round.
    """

    def __init__(self, config, shapes, seed):
        self.config, self.random = config, random.Random(seed)
        rng = self.rng = np.random.default_rng(seed)
        self.operands = rng.integers(-128, 128, (config.ob_blocks, BLOCK)).astype(np.int8)
        self.expected = np.zeros((config.ab_granules, BLOCK), np.int64)
        self.rd, self.mx, self.kinds = [], [], []
        self.completes = [[] for _ in range(config.units)]
        self.at, self.dst = 5, 0
        memory = [[bytes(BEAT_BYTES * self.at)] for _ in range(config.units)]
        for products in shapes:
            if products[0].fmt == STREAM:
                contents = [[] for _ in range(config.units)]
                for product in products:
                    self._stream_product(product, contents)
                streams = [self._encoded(runs) for runs in contents]
                found = [decode_stream(stream) for stream in streams]
            else:
                parts = [self._raw_product(product) for product in products]
                streams = [b"".join(units) for units in zip(*parts, strict=True)]
                found = [decode_raw(stream) for stream in streams]
            self._read(products[0], streams, found, memory)
        self.channels = [np.frombuffer(b"".join(parts), np.uint8).copy() for parts in memory]

    def _encoded(self, runs) -> bytes:
        """Headers of up to four beats, with padding between them."""
        with_padding = []
        for content in runs:
            with_padding.append(content)
            if not content.run.more and self.random.random() < 0.1:
                with_padding += [None] * self.random.randint(1, 2)
        return encode_stream(with_padding, self.random.choice((4, 16)))

    def _read(self, product, streams: list[bytes], rounds: list[list[Round]], memory):
        """The RD instruction: streams padded to one length, cut in ``n_outer`` pieces with gaps between them."""
        assert all([each.kind for each in found] == [each.kind for each in rounds[0]] for found in rounds)
        self.kinds += [each.kind for each in rounds[0]]
        beats = [len(stream) // BEAT_BYTES for stream in streams]
        n_beats = ceil_div(max(beats), product.n_outer) * product.n_outer
        assert product.fmt == STREAM or set(beats) == {n_beats}
        inner, gap = n_beats // product.n_outer, 3
        for stream, found, completes, parts in zip(streams, rounds, self.completes, memory, strict=True):
            last = {each.beat for each in found}
            completes += [beat in last for beat in range(n_beats)]
            padded = stream.ljust(n_beats * BEAT_BYTES, b"\0")
            for at in range(0, len(padded), BEAT_BYTES * inner):
                parts += [padded[at : at + BEAT_BYTES * inner], self.rng.bytes(BEAT_BYTES * gap)]
        self.rd.append(Rd(self.at, product.n_outer, inner, inner + gap, product.fmt))
        self.at += product.n_outer * (inner + gap)

    def _raw_product(self, product) -> list[bytes]:
        """Every unit's beats."""
        shape = (self.config.units, product.times * product.ob, product.kb, BLOCK, BLOCK)
        weights = self.rng.integers(-127, 128, shape).astype(np.int8)
        # unit, step, channel, block, input
        self._product(product, weights.astype(np.int64).transpose(0, 1, 3, 2, 4))
        return [unit.tobytes() for unit in weights]

    def _stream_product(self, product, contents: list[list[Content]]):
        matrices = np.zeros((self.config.units, product.times * product.ob, BLOCK, product.kb, BLOCK), np.int64)
        instruction = self._product(product)
        first = 0
        for _, size in instruction.groups():
            for plan in self._plans(product, size):
                for runs, matrix in zip(contents, matrices, strict=True):
                    for content in self._runs(product, plan):
                        runs.append(content)
                        content.add_to(matrix[first + content.run.step].reshape(BLOCK, -1))
            first += size
        self._expect(instruction, matrices)

    def _plans(self, product, size: int) -> list[Plan]:
        """What a group consists of: random windows, and in the end every step has a round."""
        rng = self.random
        kinds = sorted({nonzeros < BLOCK for nonzeros in product.nonzeros})
        windows = list(range(ceil_div(product.kb, WINDOW)))
        plans, missing = [], set(range(size))
        for window in rng.sample(windows, rng.randint(1, len(windows))):
            for _ in range(rng.randint(1, product.bundles)):
                plans.append(self._plan(window, rng.choice(kinds), range(size), product))
                missing -= set(plans[-1].steps)
        while missing:
            plans.append(self._plan(rng.choice(windows), rng.choice(kinds), sorted(missing), product))
            missing -= set(plans[-1].steps)
        return [*plans[:-1], replace(plans[-1], last=True)]

    def _plan(self, window, sparse, steps, product) -> Plan:
        chosen = self.random.sample(list(steps), self.random.randint(1, len(steps)) if sparse else 1)
        return Plan(window, sparse, tuple(sorted(chosen)), self.random.randint(1, product.rounds))

    def _runs(self, product, plan: Plan):
        """One unit's bundles for a plan: of any precisions and N, which together have its rounds."""
        rng, there, count = self.random, min(WINDOW, product.kb - WINDOW * plan.window), plan.rounds
        while count:
            nonzeros = rng.choice([n for n in product.nonzeros if (n < BLOCK) == plan.sparse])
            each = round_blocks(nonzeros)
            n_rounds = rng.randint(1, min(count, ceil_div(there, each)))
            n_blocks = rng.randint((n_rounds - 1) * each + 1, min(n_rounds * each, there))
            count -= n_rounds
            yield from random_bundle(
                rng,
                plan.steps,
                product.bits,
                nonzeros=nonzeros,
                window=plan.window,
                blocks=sum(1 << i for i in rng.sample(range(there), n_blocks)),
                last=plan.last and not count,
                most_negative=False,
            )

    def _product(self, product, matrices=None) -> Mx:
        """The MX instruction; with matrices, int64[unit, step, channel, block, input], also what it adds up."""
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
        mx = product.mx(act, stride, dst, dst_stride, int(rng.integers(0, 4)) * align)
        self.mx.append(mx)
        self.dst = dst + mx.n_outer * mx.dst_out
        assert self.dst <= config.ab_granules
        if matrices is not None:
            self._expect(mx, matrices)
        return mx

    def _expect(self, mx: Mx, matrices):
        for turn in range(mx.n_outer):
            steps = matrices[:, turn * mx.ob : (turn + 1) * mx.ob]
            for row in range(mx.rows(turn)):
                act = mx.act + turn * mx.act_out + row * mx.act_stride
                self._row(mx, steps, act, mx.dst + turn * mx.dst_out + row * mx.dst_stride)

    def _row(self, mx, matrices, act, dst):
        """Sums of one row, with its operand blocks from ``act`` on, to granules from ``dst`` on."""
        n, split_k = self.config.units, mx.mode == SPLIT_K
        for unit in range(n):
            places = act + (n * np.arange(mx.kb) + unit if split_k else np.arange(mx.kb))
            sums = np.einsum("jckx,kx->jc", matrices[unit], self.operands[places % self.config.ob_blocks].astype(int))
            for j in range(mx.ob):
                self.expected[dst + (j if split_k else j * n + unit)] += sums[j]


class Encoded:
    """As `Workload`: one matrix as the compiler writes it, read and multiplied once a turn.

    weight: int8[out, in], fmt: of its blocks. rows: of each turn but the last, last_rows: of that.
    """

    def __init__(self, config, weight, fmt, rows, last_rows, turns, seed):
        rng = np.random.default_rng(seed)
        units, kb = config.units, ceil_div(weight.shape[1], BLOCK)
        steps = output_blocks(len(weight), units)
        streams = encode(weight, fmt, units, steps)
        self.channels = list(streams)
        self.operands = rng.integers(-128, 128, (config.ob_blocks, BLOCK)).astype(np.int8)
        found = [decode_stream(stream.tobytes()) for stream in streams]
        assert all([each.kind for each in rounds] == [each.kind for each in found[0]] for rounds in found)
        n_beats = streams.shape[1] // BEAT_BYTES
        self.kinds = [each.kind for each in found[0]] * turns
        self.completes = [
            [beat in last for beat in range(n_beats)] * turns
            for last in ({each.beat for each in rounds} for rounds in found)
        ]
        granules = ceil_div(steps * units, config.granules_per_word) * config.granules_per_word
        n_last = last_rows if last_rows != rows else 0
        group = group_of(fmt.nonzeros, steps)
        self.rd = [Rd(0, turns, n_beats, 0, STREAM)]
        self.mx = [Mx(0, kb, rows, kb, steps, 0, granules, SPLIT_N, turns, rows * kb, rows * granules, n_last, group)]
        padded = np.zeros((steps * units * BLOCK, kb * BLOCK), np.int64)
        padded[: weight.shape[0], : weight.shape[1]] = weight
        n_rows = (turns - 1) * rows + last_rows
        acts = self.operands[: n_rows * kb].reshape(n_rows, -1).astype(np.int64)
        self.expected = np.zeros((config.ab_granules, BLOCK), np.int64)
        sums = (acts @ padded.T).reshape(n_rows, -1, BLOCK)
        self.expected[: n_rows * granules].reshape(n_rows, granules, BLOCK)[:, : sums.shape[1]] = sums
