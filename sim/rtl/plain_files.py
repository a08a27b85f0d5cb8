"""The text files that the plain test bench (plain/axi_memory.v) reads and writes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from hw.spec.config import BEAT_BYTES
from hw.spec.errors import InternalError
from sim.rtl.job import Job, MemoryImage

_PAGE_BYTES = 4096


def memory_files(job: Job, beats: Sequence[int]) -> dict[str, str]:
    """File name -> text of what the memories are and hold at first. beats: how many each port's memory stores.

    Example: {"setup.txt": "size 0 8388608\\nread_latency 20...", "memory_0.hex": "@0\\n0\\n"}.
    """
    files = {"setup.txt": "\n".join(job.setup()) + "\n"}
    for port, n_beats in enumerate(beats):
        files[f"memory_{port}.hex"] = _image([item for item in job.image if item.port == port], n_beats)
    return files


def expected_file(ranges: Iterable[tuple[int, np.ndarray]]) -> str:
    """The text of `expected_PORT.hex`: a line a beat, its number and what it must hold when the run is over. ranges:
    (address of a whole beat, uint8[64 * n])."""
    lines = []
    for address, data in ranges:
        lines += [f"{address // BEAT_BYTES + at:x} {word}" for at, word in enumerate(_words(data))]
    return "".join(f"{line}\n" for line in lines)


def read_beats(text: str) -> bytes:
    """The bytes of what $writememh wrote. What was never written is x there, and zero."""
    words = [line for line in text.splitlines() if line and not line.startswith(("//", "@"))]
    return b"".join(bytes.fromhex(word.replace("x", "0"))[::-1] for word in words)


def _image(image: Sequence[MemoryImage], n_beats: int) -> str:
    """The text for $readmemh that puts these bytes, later ones over earlier, into a memory of `n_beats`."""
    pages: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(_PAGE_BYTES, np.uint8))
    for item in image:
        data = item.flat()
        if item.address + len(data) > n_beats * BEAT_BYTES:
            raise InternalError(f"image: port {item.port} address 0x{item.address:x} is outside of the memory")
        done = 0
        while done < len(data):
            page, offset = divmod(item.address + done, _PAGE_BYTES)
            part = data[done : done + _PAGE_BYTES - offset]
            pages[page][offset : offset + len(part)] = part
            done += len(part)
    lines = [] if pages else ["@0", "0"]  # $readmemh wants a file, and a word in it
    for page in sorted(pages):
        lines += [f"@{page * _PAGE_BYTES // BEAT_BYTES:x}", *_words(pages[page])]
    return "\n".join(lines) + "\n"


def _words(data: np.ndarray) -> list[str]:
    """Each beat of uint8[64 * n] as Verilog writes 512 bits: the highest byte first."""
    return [beat.tobytes().hex() for beat in data.reshape(-1, BEAT_BYTES)[:, ::-1]]
