"""Baselines to the one program for every length: straight-line streams, a stream a length or a bucket of lengths.

A stream is recorded from the program itself: the sequencer runs for one length, and what it issues becomes SETs of
changed fields, ISSUEs and FENCEs. Row addresses stay reads of the host's lists, everything else is a constant.

`unrolled`: every length has its own stream. `bucketed`: a decode stream serves 16 lengths of the cache, with the
position as its argument and absent keys masked; a prefill stream serves 128 prompt lengths without their last token:
rows behind the prompt are computed and never seen, and the last token is a decode step behind it.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from compiler.kernels.text import ARGUMENTS
from compiler.layout import Layout
from compiler.program import Compiled
from hw.spec.config import BEAT_BYTES
from hw.spec.errors import UserError
from hw.spec.isa import FIELDS, INSTRUCTION_BYTES, REGISTERS, WORD_MASK, Error, Op, Unit
from hw.spec.run import Invocation, Result
from hw.spec.timing import PAGE_BEATS
from hw.spec.weights import ceil_div
from sim.functional_sequencer import Sequencer
from sim.memory_image import MemoryImage

from .session import Session

MODES = ("runtime", "bucketed", "unrolled")
DECODE_BUCKET, PREFILL_BUCKET = 16, 128
"""Lengths that share a stream. Where a key slot of all units is longer, neighbouring decode streams come out equal;
they are counted all the same."""
SAMPLE = (1, 2, 16, 127, 128, 129, 616, 1024, 2048, 4096)
"""Lengths whose streams are really made when streams of all lengths are sized; others are interpolated."""
SAMPLE_LAYERS = (2, 3)
"""Further layers have the same instructions as the third."""
POSITION, SCRATCH = 1, REGISTERS - 1
"""Registers of a stream: its argument, and row addresses on their way."""
Words = tuple[int, int, int, int, int]
"""An instruction: op, a, b, c, imm."""
Origin = tuple[str, int, int]
"""Where a value comes from that is no constant: ("list", word address, plus) or ("position", 0, plus)."""


class Recorder(Sequencer):
    """Runs a program without units and keeps what it issues, as a straight-line stream."""

    def __init__(self, layout: Layout, memory: MemoryImage, call: Invocation, any_position: bool) -> None:
        super().__init__(layout.config, memory, call)
        self.config, self.memory, self.stream = layout.config, memory, list[Words]()
        self.lists = [(16 * s.base, 16 * (s.base + s.beats)) for s in (layout.aux["rows"], layout.aux["rope_rows"])]
        self.origins: dict[int, Origin] = {}
        """Of registers."""
        if any_position:
            self.origins[1 + ARGUMENTS.index("position")] = ("position", 0, 0)
        self.field_origins: list[dict[str, Origin]] = [{} for _ in Unit]
        self.emitted: list[dict[str, int | Origin]] = [dict.fromkeys(FIELDS[unit], 0) for unit in Unit]

    def record(self) -> np.ndarray:
        """The whole run: encoded instructions."""
        while True:
            self.run_scalars()
            op, a, b, c, imm = self.current()
            if op == Op.HALT:
                self.stream.append((Op.HALT, 0, 0, 0, imm))
                return _encoded(self.stream)
            if op == Op.ISSUE:
                self._set_fields(a)
                self.stream.append((op, a, b, c, 0))
                self.retire()
            elif op == Op.FENCE:
                self.stream.append((op, 0, 0, 0, imm))
                self.retire()
            else:
                self._load(a, b, imm)

    def _load(self, a: int, b: int, imm: int) -> None:
        address = self.registers[b] + imm & WORD_MASK
        self.load(self.memory, self.config.aux_port, a, b, imm)
        self.origins.pop(a, None)
        if any(first <= address < end for first, end in self.lists):
            self.origins[a] = ("list", address, 0)

    def scalar(self, op: int, a: int, b: int, c: int, imm: int) -> None:
        if op == Op.SET:
            name, origin = self.names[a >> 5][a & 31], self.origins.get(b)
            self.field_origins[a >> 5].pop(name, None)
            if origin is not None:
                self.field_origins[a >> 5][name] = _plus(origin, imm)
        elif op < Op.BEQ:
            origin = self._result_origin(op, b, c, imm)
            self.origins.pop(a, None)
            if origin is not None and a:
                self.origins[a] = origin
        super().scalar(op, a, b, c, imm)

    def _result_origin(self, op: int, b: int, c: int, imm: int) -> Origin | None:
        """A value stays `position` or an address plus a constant through additions."""
        left, right = self.origins.get(b), self.origins.get(c)
        if op == Op.ADDI and left is not None:
            return _plus(left, imm)
        if op == Op.ADD and left is not None and right is None:
            return _plus(left, self.registers[c])
        if op == Op.ADD and left is None and right is not None:
            return _plus(right, self.registers[b])
        if op == Op.SUB and left is not None and right is None:
            return _plus(left, -self.registers[c])
        return None

    def _set_fields(self, unit: int) -> None:
        """Fields of the unit that are not as the stream has set them."""
        origins, emitted = self.field_origins[unit], self.emitted[unit]
        if not origins and emitted == self.shadow[unit]:
            return
        for index, (name, value) in enumerate(self.shadow[unit].items()):
            wanted = origins.get(name, value)
            if emitted[name] == wanted:
                continue
            emitted[name] = wanted
            register, constant = 0, value
            if isinstance(wanted, tuple):
                kind, address, constant = wanted
                register = POSITION if kind == "position" else SCRATCH
                if kind == "list":
                    self.stream.append((Op.LDS, SCRATCH, 0, 0, address))
            self.stream.append((Op.SET, unit << 5 | index, register, 0, constant))


def _encoded(stream: list[Words]) -> np.ndarray:
    """uint64[instructions], as `Instruction.encode` does one."""
    op, a, b, c, imm = np.array(stream, np.uint64).T
    return op | a << np.uint64(8) | b << np.uint64(16) | c << np.uint64(24) | imm << np.uint64(32)


def _plus(origin: Origin, constant: int) -> Origin:
    kind, address, plus = origin
    return kind, address, plus + constant & WORD_MASK


class Unrolled(Session):
    """A stream of its own for every length. Vision has one length and runs the program."""

    any_position = False

    def run(self, name: str, own_scalars: bool = False, **arguments: int) -> Result:
        if name != "lm":
            return super().run(name, own_scalars, **arguments)
        program, config = self.compiled.program, self.compiled.config
        call = Invocation(
            self.layout.aux["program"].base,
            len(program.words),
            program.entries[name]["entry"],
            tuple(self._recorded(arguments)[a] for a in ARGUMENTS),
        )
        words = Recorder(self.layout, self.memory, call, self.any_position).record()
        at = ceil_div(self.layout.aux.at, PAGE_BEATS) * PAGE_BEATS
        if at * BEAT_BYTES + words.nbytes > config.aux_bytes:
            raise UserError(
                f"a stream of {words.nbytes} bytes does not fit auxiliary memory of {config.name}: choose "
                "a shorter length"
            )
        self.memory.write(config.aux_port, at * BEAT_BYTES, words)
        return self.start(name, Invocation(at, len(words), 0, (arguments["position"],)))

    def _recorded(self, arguments: dict[str, int]) -> dict[str, int]:
        """The arguments that a stream for these is recorded with."""
        if arguments["mask"] or arguments["more"]:
            raise UserError(
                "streams for one length know no attention mask and no token reduction: choose --program runtime"
            )
        return arguments


class Bucketed(Unrolled):
    """A stream a bucket of lengths."""

    any_position = True

    def prefill(self, rows: Sequence[int], *arguments, **options) -> np.ndarray:
        """Tokens but the last, padded to the bucket, then the last one."""
        n = len(rows)
        if n > 1:
            if self.kept or arguments or options.get("positions") is not None:
                raise UserError("a bucketed prefill begins with an empty cache: choose --program runtime")
            head, self.head, self.any_position = self.head, False, False
            padded = _bucket(n - 1, PREFILL_BUCKET, self.layout.context)
            super().prefill([*rows[:-1], *[rows[0]] * (padded - n + 1)], **options)
            self.head, self.any_position, self.kept = head, True, n - 1
        return super().prefill(rows[-1:], *arguments, **options)

    def _recorded(self, arguments: dict[str, int]) -> dict[str, int]:
        arguments = super()._recorded(arguments)
        if not self.any_position:
            return arguments
        keys = _bucket(arguments["position"] + 1, DECODE_BUCKET, self.layout.context)
        return arguments | {"position": keys - 1}


SESSIONS = {"runtime": Session, "bucketed": Bucketed, "unrolled": Unrolled}


def _bucket(length: int, size: int, context: int) -> int:
    """The bucket's longest length."""
    return min(ceil_div(length, size) * size, context)


# --- sizes -----------------------------------------------------------------------------------------------


class _Measure:
    """Counts a run's instructions instead of executing them."""

    name = "functional"

    def __init__(self) -> None:
        self.instructions = 0

    def run(self, config, memory: MemoryImage, invocation: Invocation) -> Result:
        self.instructions = invocation.program_length
        return Result(Error.NONE, 0, 0, None)


def stream_bytes(compiled: Compiled, memory: MemoryImage, mode: str, tokens: int, start: int) -> int:
    """Bytes of the stream for `tokens` tokens behind `start` ones, all layers; made for few layers and extrapolated.

    A bucketed prefill's is without the last token's decode step.
    """
    n_layers = compiled.layout.model.text.n_layers
    found = []
    for layers in sorted({min(n, n_layers) for n in SAMPLE_LAYERS}):
        measure = _Measure()
        session = Unrolled(compiled, memory, measure, layers, head=mode == "unrolled" or tokens == 1)
        session.any_position = mode == "bucketed" and tokens == 1
        session.kept = start
        session.prefill([session.embed_row(0)] * tokens)
        found.append(measure.instructions)
    more = (found[1] - found[0]) * (n_layers - SAMPLE_LAYERS[1]) if len(found) > 1 else 0
    return (found[-1] + more) * INSTRUCTION_BYTES


def program_sizes(compiled: Compiled, memory: MemoryImage) -> dict[str, dict]:
    """Bytes of instructions for every prompt and cache length up to the context, by mode.

    The program's are exact; streams are made for a sample of lengths, the others' sizes interpolated.
    """
    context = compiled.layout.context
    sample = [n for n in SAMPLE if n < context] + [context]
    program = len(compiled.program.words) * INSTRUCTION_BYTES
    out: dict[str, dict] = {"runtime": {"program_bytes": program, "streams": 1, "sampled": False}}
    for mode, sizes in (("bucketed", (DECODE_BUCKET, PREFILL_BUCKET)), ("unrolled", (1, 1))):
        decode, prefill = ({_bucket(n, size, context) for n in sample} for size in sizes)
        made = {
            "decode": {n: stream_bytes(compiled, memory, mode, 1, n - 1) for n in sorted(decode)},
            "prefill": {n: stream_bytes(compiled, memory, mode, n, 0) for n in sorted(prefill)},
        }
        totals, streams = {}, 0
        for (phase, known), size in zip(made.items(), sizes, strict=True):
            lengths = sorted({_bucket(n, size, context) for n in range(1, context + 1)})
            totals[f"{phase}_bytes"] = round(sum(_interpolated(known, n, size) for n in lengths))
            streams += len(lengths)
        out[mode] = {
            "program_bytes": sum(totals.values()),
            **totals,
            "streams": streams,
            "sampled": True,
            "sample": {phase: {str(n): size for n, size in known.items()} for phase, known in made.items()},
        }
    return out


def _interpolated(known: dict[int, int], length: int, size: int) -> float:
    """Between the two sampled lengths around it; from the first on."""
    lengths = list(known)
    at = min(max(bisect_right(lengths, length), 1), len(lengths) - 1)
    if len(lengths) == 1 or length <= lengths[0]:
        return known[lengths[0]]
    low, high = lengths[at - 1], lengths[at]
    return known[low] + (known[high] - known[low]) * (length - low) / (high - low)


__all__ = ["MODES", "SESSIONS", "Bucketed", "Recorder", "Unrolled", "program_sizes", "stream_bytes"]
