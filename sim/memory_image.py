"""The memories behind every port, sparse: attached arrays (weights) under writable pages.

Ports 0 .. units-1 are the matrix units' channels, port `units` is the auxiliary memory. Addresses are bytes.
A read or write beyond a port's size raises `OutOfRange` (the machine sees a bus error).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.errors import InternalError

PAGE_BYTES = 1 << 16


class OutOfRange(Exception):
    """An access beyond the end of a port's memory."""


@dataclass
class Region:
    """Bytes attached at an address; data None is 'absent': enough for timing, not for data."""

    start: int
    n_bytes: int
    data: np.ndarray | None
    dirty: bool = False
    """Written to since it was attached: pages lie over parts of it."""
    headers: tuple[np.ndarray, np.ndarray] | None = None
    """Of absent data, the header beats of its weight streams: (int64[n] ascending beats behind `start`, uint8[n, 64]).
    Regions with the same headers may share this object."""

    @property
    def end(self) -> int:
        return self.start + self.n_bytes


class Port:
    """One port's memory: uint8, zero where nothing was attached or written."""

    def __init__(self, size_bytes: int):
        self.size_bytes = size_bytes
        self.pages: dict[int, np.ndarray] = {}
        self.touched: set[int] = set()
        """Pages written since the image was made (or since `MemoryImage.fork`)."""
        self.regions: list[Region] = []

    def check(self, address: int, n_bytes: int) -> None:
        if address < 0 or address + n_bytes > self.size_bytes:
            raise OutOfRange(f"{n_bytes} bytes at 0x{address:x} are beyond the memory's 0x{self.size_bytes:x} bytes")

    def region_at(self, address: int) -> Region | None:
        at = bisect_right(self.regions, address, key=lambda r: r.start) - 1
        return self.regions[at] if at >= 0 and address < self.regions[at].end else None

    def attach(
        self,
        address: int,
        data: np.ndarray | None,
        n_bytes: int,
        headers: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.check(address, n_bytes)
        at = bisect_right(self.regions, address, key=lambda r: r.start)
        if (at and self.regions[at - 1].end > address) or (
            at < len(self.regions) and self.regions[at].start < address + n_bytes
        ):
            raise InternalError(f"attached regions overlap at 0x{address:x}")
        self.regions.insert(at, Region(address, n_bytes, data, headers=headers))

    def clean_region(self, address: int, n_bytes: int) -> Region | None:
        """The never-written region holding all of these bytes, if there is one."""
        region = self.region_at(address)
        whole = region is not None and not region.dirty and address + n_bytes <= region.end
        return region if whole else None

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        """uint8[n_bytes]; a view where one attached array holds it all, do not write to it."""
        self.check(address, n_bytes)
        region = self.clean_region(address, n_bytes)
        if region is not None:
            return self._data(region)[address - region.start : address - region.start + n_bytes]
        out = np.empty(n_bytes, np.uint8)
        done = 0
        while done < n_bytes:
            page, offset = divmod(address + done, PAGE_BYTES)
            n = min(PAGE_BYTES - offset, n_bytes - done)
            held = self.pages.get(page)
            if held is None:
                self._underlying(address + done, out[done : done + n])
            else:
                out[done : done + n] = held[offset : offset + n]
            done += n
        return out

    def header_beats(self, address: int, n_bytes: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(beats uint8[n, 64], their positions int64[n] behind address): all beats (positions None) or, where the
        data is absent, the attached header beats. Do not write to them."""
        self.check(address, n_bytes)
        region = self.clean_region(address, n_bytes)
        if region is None or region.data is not None or region.headers is None:
            return self.read(address, n_bytes).reshape(-1, BEAT_BYTES), None
        first = (address - region.start) // BEAT_BYTES
        where, beats = region.headers
        chosen = slice(*np.searchsorted(where, (first, first + n_bytes // BEAT_BYTES)).tolist())
        return beats[chosen], where[chosen] - first

    def page(self, number: int) -> np.ndarray:
        """The writable page, made from what is attached below it."""
        held = self.pages.get(number)
        if held is None:
            held = np.zeros(PAGE_BYTES, np.uint8)
            self._underlying(number * PAGE_BYTES, held, for_write=True)
            self.pages[number] = held
        self.touched.add(number)
        return held

    def write(self, address: int, data: np.ndarray) -> None:
        self.check(address, len(data))
        done = 0
        while done < len(data):
            page, offset = divmod(address + done, PAGE_BYTES)
            n = min(PAGE_BYTES - offset, len(data) - done)
            self.page(page)[offset : offset + n] = data[done : done + n]
            done += n

    def scatter(self, addresses: np.ndarray, rows: np.ndarray) -> None:
        """Writes rows[i] (uint8[n, width]) at addresses[i]; width-aligned, so that no row crosses a page."""
        if not len(addresses):
            return
        width = rows.shape[1]
        self.check(int(addresses.min()), 0)
        self.check(int(addresses.max()), width)
        pages = addresses // PAGE_BYTES
        for number in np.unique(pages).tolist():
            chosen = pages == number
            self.page(number).reshape(-1, width)[addresses[chosen] % PAGE_BYTES // width] = rows[chosen]

    def _underlying(self, address: int, out: np.ndarray, for_write: bool = False) -> None:
        out[:] = 0
        at = max(0, bisect_right(self.regions, address, key=lambda r: r.start) - 1)
        for region in self.regions[at:]:
            if region.start >= address + len(out):
                break
            low, high = max(region.start, address), min(region.end, address + len(out))
            if low < high:
                if for_write:
                    region.dirty = True
                    if region.data is None:
                        continue
                out[low - address : high - address] = self._data(region)[low - region.start : high - region.start]

    @staticmethod
    def _data(region: Region) -> np.ndarray:
        if region.data is None:
            raise InternalError(f"the data at 0x{region.start:x} is absent: this image serves timing only")
        return region.data


class MemoryImage:
    """All ports of a machine. `cache` and `plans` keep what a backend derived from clean regions."""

    def __init__(self, config: Config):
        self.config = config
        self.ports = [Port(config.channel_bytes) for _ in range(config.units)] + [Port(config.aux_bytes)]
        self.cache: dict = {}
        self.plans: dict = {}

    @property
    def sizes_bytes(self) -> list[int]:
        return [port.size_bytes for port in self.ports]

    def attach(self, port: int, address: int, data: np.ndarray) -> None:
        """Puts an array's bytes (any dtype, C order, a memmap too) under a port without copying them."""
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.ports[port].attach(address, flat, flat.nbytes)

    def attach_absent(
        self, port: int, address: int, n_bytes: int, headers: tuple[np.ndarray, np.ndarray] | None = None
    ) -> None:
        """Reserves bytes whose values nobody will need: timing-only runs.

        headers: the header beats of the weight streams in it, which time depends on: (int64[n] ascending beats
        behind `address`, uint8[n, 64]). Regions that share this object are known to be alike.
        """
        self.ports[port].attach(address, None, n_bytes, headers)

    def read(self, port: int, address: int, n_bytes: int) -> np.ndarray:
        return self.ports[port].read(address, n_bytes)

    def write(self, port: int, address: int, data: bytes | np.ndarray) -> None:
        flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
        self.ports[port].write(address, flat.reshape(-1).view(np.uint8))

    def fork(self) -> "MemoryImage":
        """An independent image with the same content; attached arrays are shared, nothing counts as touched."""
        other = MemoryImage(self.config)
        for mine, its in zip(self.ports, other.ports, strict=True):
            its.size_bytes = mine.size_bytes
            its.pages = {number: page.copy() for number, page in mine.pages.items()}
            its.regions = [Region(r.start, r.n_bytes, r.data, r.dirty, r.headers) for r in mine.regions]
        return other

    def touched(self) -> Iterator[tuple[int, int, int]]:
        """(port, byte address, bytes) of every page written since the image was made or forked."""
        for number, port in enumerate(self.ports):
            for page in sorted(port.touched):
                start = page * PAGE_BYTES
                yield number, start, min(PAGE_BYTES, port.size_bytes - start)

    def contents(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(port, byte address, bytes) that build this image when written in this order."""
        for number, port in enumerate(self.ports):
            for region in port.regions:
                if region.data is not None:
                    yield number, region.start, region.data
            for page in sorted(port.pages):
                start = page * PAGE_BYTES
                yield number, start, port.pages[page][: port.size_bytes - start]
