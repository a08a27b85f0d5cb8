"""One linear layer on the machine: wide rows in, quantised, multiplied with a streamed matrix, scaled, wide out."""

from dataclasses import dataclass

import numpy as np

from compiler import stream
from compiler.geometry import Geometry
from compiler.kernels.builder import At, Builder, Rows, Value
from compiler.kernels.context import GROUPED_ROWS, Turns, grouped_rows
from compiler.kernels.regions import Allocator, Region
from compiler.pack import row_words
from hw.spec import numerics as nm
from hw.spec.config import BLOCK, Config
from hw.spec.isa import CTL1, Fin, LdKind, Mul1, Mul2, Reduce, Row, Src, StMode, pack_bits
from hw.spec.run import Invocation
from hw.spec.weights import MAX_SCALE, ceil_div, group_steps
from ref_model.compress.format import BlockFormat
from ref_model.quantise import QuantLinear, encode_scales
from sim.memory_image import MemoryImage

Array = np.ndarray
OUTPUT = Region("MEMORY", "linear.out", 0, 1)
INPUT_BITS = 20
"""Magnitude of the synthetic wide rows."""


@dataclass(frozen=True)
class Shape:
    """tokens x n_in times n_in x n_out, `rows` tokens at a time."""

    tokens: int
    n_in: int
    n_out: int
    rows: int


def weights(n_out: int, n_in: int, bits: int, nonzeros: int, seed: int = 0) -> QuantLinear:
    """Random weights with exactly `nonzeros` of 16 in every row of every block, at one precision."""
    rng = np.random.default_rng(seed)
    ob, kb = n_out // BLOCK, n_in // BLOCK
    levels = _levels(rng, (n_out, kb, BLOCK), bits)
    if nonzeros < BLOCK:
        order = rng.random((n_out, kb, BLOCK), dtype=np.float32).argpartition(nonzeros - 1, axis=-1)
        mask = np.zeros(levels.shape, bool)
        np.put_along_axis(mask, order[..., :nonzeros], True, axis=-1)
        levels *= mask
    largest = MAX_SCALE.get(bits, 0)
    scales = np.full((n_out, kb), largest, np.int8)
    weight = (levels * np.int8(max(largest, 1))).reshape(n_out, n_in)
    blocks = np.full((ob, kb), bits, np.uint8), np.full((ob, kb), nonzeros, np.uint8)
    words = encode_scales(np.full(n_out, 2.0**-8))
    return QuantLinear(weight, words, 0, None, BlockFormat(*blocks, scales))


def _levels(rng, shape, bits: int) -> Array:
    """Levels without zero: int8."""
    magnitude = rng.integers(0, 1 << bits - 1, shape, dtype=np.int8)
    sign = rng.integers(0, 2, shape, dtype=np.int8) * 2 - 1
    if bits < 4:
        return sign * (2 * magnitude + 1)
    return sign * np.clip(magnitude, 1, (1 << bits - 1) - 1)


class LinearLayer:
    """Memory and program.

    store: results go to aux memory, else they end in the vector buffer. late: the stream starts when the matrix units
    wait for it, so that every beat held back is the front's doing; else it runs ahead.
    """

    def __init__(
        self, config: Config, shape: Shape, layer: QuantLinear, *, store: bool = False, late: bool = False
    ) -> None:
        self.config, self.shape, self.layer, self.store, self.late = config, shape, layer, store, late
        self.geo = Geometry(config)
        self.data = stream.encode(layer.weight, layer.format, config.units)
        self.row_granules, self.out_granules = self.geo.granules(shape.n_in), self.geo.acc_granules(shape.n_out)
        self.program_at, self.words_at = 0, config.imem_instructions // 8
        self.rows_at = self.words_at + self.out_granules
        self.out_at = self.rows_at + shape.tokens * self.row_granules
        self.program = self._program()

    @property
    def stream_beats(self) -> int:
        """Beats of a unit's stream."""
        return self.data.shape[1] // 64

    def image(self, seed: int = 1) -> tuple[MemoryImage, Array]:
        """Memory before the run, and its input rows int64[tokens, n_in]."""
        image, aux = MemoryImage(self.config), self.config.aux_port
        rows = np.random.default_rng(seed).integers(
            -1 << INPUT_BITS, 1 << INPUT_BITS, (self.shape.tokens, self.shape.n_in)
        )
        for unit, data in enumerate(self.data):
            image.attach(unit, 0, data)
        image.write(aux, self.program_at * 64, np.array(self.program, np.uint64).view(np.uint8))
        image.write(aux, self.words_at * 64, row_words(self.layer.words[None], self.out_granules))
        image.write(aux, self.rows_at * 64, row_words(rows, self.row_granules))
        return image, rows

    def results(self, image: MemoryImage) -> Array:
        """Wide rows int32[tokens, n_out] that the program stored."""
        n = self.shape.tokens * self.out_granules * 64
        return (
            image.read(self.config.aux_port, self.out_at * 64, n)
            .view(np.int32)
            .reshape(self.shape.tokens, -1)[:, : self.shape.n_out]
        )

    def invocation(self) -> Invocation:
        return Invocation(self.program_at, len(self.program))

    def _program(self) -> list[int]:
        """Chunks of rows, unrolled; buffers double, so that loading, multiplying and scaling overlap."""
        b, c, shape = Builder(self.config, groups=self.group > 0), self.config, self.shape
        space = {name: Allocator(c, name) for name in ("AB", "PB", "VB", "SB", "OB", "RS")}
        words = space["PB"].take("words", self.out_granules)
        b.load(self.words_at, words, self.out_granules, kind=LdKind.PARAMETERS)
        sides = [
            {
                "X": space["PB"].take(f"X{i}", shape.rows * self.row_granules),
                "Q": space["OB"].take(f"Q{i}", shape.rows * self.geo.granules(shape.n_in)),
                "ACC": space["AB"].take(f"ACC{i}", shape.rows * self.out_granules),
                "E": space["RS"].take(f"E{i}", shape.rows),
                "Y": space["SB" if self.store else "VB"].take(f"Y{i}", shape.rows * self.out_granules),
            }
            for i in range(2)
        ]
        chunks = [(at, min(shape.rows, shape.tokens - at)) for at in range(0, shape.tokens, shape.rows)]
        self._quantise(b, sides[0], *chunks[0])
        for number, (at, n) in enumerate(chunks):
            side, turns = sides[number % 2], self._turns(n)
            if self.late:
                b.fence()
            else:
                b.read(0, self.stream_beats, rows=turns.n)
            self._multiply(b, side, n, turns)
            if self.late:
                b.read(0, self.stream_beats, rows=turns.n)
            if number + 1 < len(chunks):
                self._quantise(b, sides[(number + 1) % 2], *chunks[number + 1])
            self._scale(b, side, words, at, n)
        b.halt()
        return b.words()

    @property
    def group(self) -> int:
        """Output steps of a group of the stream; 0: blocks are dense, and there are none."""
        sparse = (self.layer.format.nonzeros < BLOCK).any() if self.layer.format else False
        return group_steps(self.geo.steps(self.shape.n_out)) if sparse else 0

    def _turns(self, rows: int) -> Turns:
        """How a chunk's rows are multiplied: of a sparse matrix some at a time."""
        if not self.group:
            return Turns(rows)
        most = min(rows, grouped_rows(self.config, self.group, GROUPED_ROWS))
        times = ceil_div(rows, most)
        return Turns(most, times, rows - (times - 1) * most if times > 1 else 0)

    def _multiply(self, b: Builder, side: dict[str, Region], rows: int, turns: Turns) -> None:
        blocks, several = self.geo.granules(self.shape.n_in), turns.n != 1
        b.matmul(
            side["Q"],
            side["ACC"],
            rows=turns.rows,
            kb=self.geo.kb(self.shape.n_in),
            ob=self.geo.steps(self.shape.n_out),
            act_stride=blocks,
            out_stride=self.out_granules,
            times=turns.n,
            act_out=turns.rows * blocks if several else 0,
            out_out=turns.rows * self.out_granules if several else 0,
            last_rows=turns.last,
            group=self.group,
            total=rows if several else None,
        )

    def _quantise(self, b: Builder, side: dict[str, Region], at: int, n: int) -> None:
        step, width = self.geo.words(self.shape.n_in), self.shape.n_in
        b.load(self.rows_at + at * self.row_granules, side["X"], n * self.row_granules)
        rows, entries = At(side["X"], step), Rows(side["E"], 1)
        b.vu_pass((n, 1, step), width, p=rows, w=entries, src=Src.P, reduce=Reduce.ABSMAX, fin=Fin.QRECIP)
        b.vu_pass(
            (n, 1, step),
            width,
            p=rows,
            r0=entries,
            src=Src.P,
            mul2=Mul2.R0,
            row0=Row.FIN,
            d=At(side["Q"], self.geo.granules(width)),
        )

    def _scale(self, b: Builder, side: dict[str, Region], words: Region, at: int, n: int) -> None:
        step = self.geo.acc_words(self.shape.n_out)
        ctl1: Value = pack_bits(CTL1, {"adj2": self.layer.shift})
        b.vu_pass(
            (n, 1, step),
            self.shape.n_out,
            a=At(side["ACC"], step),
            p=At(words),
            r0=Rows(side["E"], 1),
            d=At(side["Y"], step),
            src=Src.A,
            mul1=Mul1.P,
            mul2=Mul2.R0,
            row0=Row.SCALE,
            ctl1=ctl1,
        )
        if self.store:
            b.store(
                StMode.LIN,
                side["Y"],
                OUTPUT,
                addr=self.out_at + at * self.out_granules,
                src_tok=self.out_granules,
                n_tok=n,
                n_gran=self.out_granules,
                stride_tok=self.out_granules,
                stride_gran=1,
                src_head=0,
            )


def golden(layer: QuantLinear, rows: Array) -> Array:
    """What the program must store: int64[tokens, n_out]."""
    from ref_model.golden.operators import linear, quantise_rows

    return linear(*quantise_rows(rows), layer)


__all__ = ["LinearLayer", "Shape", "ceil_div", "golden", "nm", "weights"]
