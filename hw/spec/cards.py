"""Alveo cards: what a configuration has to fit, and where each figure comes from. Standard library only."""

from dataclasses import dataclass
from itertools import islice

from .config import Config, ConfigError
from .resources import Row, budget, refuse_excess, with_platform

SOURCES = {
    "device": "CLBs, 6-LUTs block RAMs, UltraRAMs, DSP48E2s and dies of XCU50 (= XCVU35P: XCVU33P + XCVU11P) "
    "and of XCU280 and XCU55C (= XCVU37P: XCVU33P + 2 x XCVU11P): a table of UltraScale+ devices on GitHub, by third "
    "parties, after AMD's selection guide XMP103; flip-flops are 16 a CLB (UG574).",
    "hbm": "UG1393 (2023.1), HBM Configuration and Use: 32 pseudo-channels of 256 MB on U280 and U50, 512 MB on U55C; "
    "14.375 GB/s a pseudo-channel, 460 GB/s in all.",
    "u50_peak": "not confirmed in AMD's text here: 316 GB/s is what third parties quote from DS965.",
    "sll": "not confirmed in AMD's text here: 23,040 wires a boundary is what several public projects with reports of "
    "U280 builds give (59.24 % of 23,040 used, in one); U50 and U55C are made of the same dies.",
    "platforms": "names used by public projects that build for these cards; U50 Gen3x16 XDMA base 5: UG1120.",
    "u280_region": "dynamic region of xilinx_u280_gen3x16_xdma_1_202211_1: a device file of RapidStream, extracted "
    "from Vivado, in the public repository Crazy-James26/FlexLLM (u280_device.json, commit c740cda); the two slots of "
    "each die added, block RAMs of 18 Kb halved.",
}
"""Totals are the device's; `REGIONS` says what a platform's shell leaves of them, where that is known."""

HBM_CHANNELS = 32
HBM_PORTS = 32
"""AXI ports of the HBM subsystem: as many kernel masters can have one for themselves."""
CROSSING_WIRES = 23040
"""Super long lines over a boundary of two dies, both directions together."""
_CLB_LUTS, _CLB_FFS = 8, 16
_BASE_DIE = {"clbs": 54960, "BRAM36": 672, "URAM": 320, "DSP48E2": 2880}
_UPPER_DIE = {"clbs": 54000, "BRAM36": 672, "URAM": 320, "DSP48E2": 3072}


@dataclass(frozen=True)
class Region:
    """The dynamic region of a platform: what the shell leaves to the user's kernel."""

    dies: tuple[dict[str, int], ...]
    """Resources in each SLR, SLR0 first, named as in `hw.synth.KINDS`."""
    crossings: tuple[int, ...]
    """Free wires over the boundaries SLR0-SLR1, SLR1-SLR2."""

    @property
    def resources(self) -> dict[str, int]:
        """Of all dies."""
        return {kind: sum(die[kind] for die in self.dies) for kind in self.dies[0]}


REGIONS = {
    "xilinx_u280_gen3x16_xdma_1_202211_1": Region(
        (
            {"LUT": 388800, "FF": 777600, "BRAM36": 600, "URAM": 320, "DSP48E2": 2664},
            {"LUT": 364800, "FF": 729600, "BRAM36": 576, "URAM": 320, "DSP48E2": 2784},
            {"LUT": 382080, "FF": 764160, "BRAM36": 600, "URAM": 320, "DSP48E2": 2856},
        ),
        (16797, 18773),
    )
}
"""By platform. Of a platform that is not here nothing is known."""


@dataclass(frozen=True)
class Card:
    """One card."""

    name: str
    part: str
    platform: str
    dies: tuple[dict[str, int], ...]
    """Resources of each SLR, SLR0 (with the HBM) first."""
    channel_bytes: int
    ddr_banks: int
    hbm_bytes_per_second: float

    @property
    def slrs(self) -> int:
        return len(self.dies)

    def slr(self, index: int) -> dict[str, int]:
        """Resources of one SLR, named as in `hw.synth.KINDS`."""
        die = self.dies[index]
        logic = {"LUT": die["clbs"] * _CLB_LUTS, "FF": die["clbs"] * _CLB_FFS}
        return logic | {kind: n for kind, n in die.items() if kind != "clbs"}

    @property
    def resources(self) -> dict[str, int]:
        """Of the whole device."""
        return {kind: sum(self.slr(i)[kind] for i in range(self.slrs)) for kind in self.slr(0)}

    @property
    def region(self) -> Region | None:
        """What the platform leaves to the user; None where that is not known."""
        return REGIONS.get(self.platform)

    @property
    def core_slr(self) -> int:
        """Where all but the matrix units is meant to be: in the middle, or beside the shell's."""
        return self.slrs // 2

    def memory_of(self, config: Config, port: int) -> str:
        """The memory bank, as v++ names it, behind a memory port: a pseudo-channel for each matrix unit; for aux the
        card's DDR, else the pseudo-channels that are left."""
        if port != config.aux_port:
            return f"HBM[{port}]"
        if self.ddr_banks:
            return "DDR[0]"
        first, last = config.units, HBM_CHANNELS - 1
        return f"HBM[{first}]" if first == last else f"HBM[{first}:{last}]"

    def floorplan(self, config: Config) -> dict[int, list[int]]:
        """SLR -> matrix units, so that with the core on `core_slr` all SLRs are as full. SLR0, with the shell and the
        HBM, is the last to get one more."""
        counts = dict.fromkeys(range(self.slrs), 0)
        for _ in range(config.units):
            counts[min(counts, key=lambda slr: (counts[slr] + CORE_UNITS * (slr == self.core_slr), -slr))] += 1
        units = iter(range(config.units))
        return {slr: list(islice(units, n)) for slr, n in counts.items()}

    def budget(self, config: Config) -> list[Row]:
        """What the configuration takes of the card. Limits are the device's; what is above the platform's region is
        not refused, but each row says what share of it that is."""
        rows = budget(config, self.resources, self.floorplan(config), self.core_slr, CROSSING_WIRES)
        if self.region is None:
            return rows
        return [with_platform(row, self.region.resources, self.region.crossings) for row in rows]

    def check(self, config: Config) -> None:
        """ConfigError if the configuration's ports, memories or resources do not fit the card."""
        where = f"configuration {config.name!r} on {self.name}"
        masters = config.units + (not self.ddr_banks)
        if masters > HBM_PORTS:
            raise ConfigError(
                f"{where}: {masters} masters need an HBM port each, the card has {HBM_PORTS} and no DDR; "
                f"choose a configuration of {HBM_PORTS // 2} units, such as {self.name}"
            )
        if config.channel_bytes > self.channel_bytes:
            raise ConfigError(
                f"{where}: channel_bytes = {config.channel_bytes}, a pseudo-channel has "
                f"{self.channel_bytes} bytes; choose a smaller one"
            )
        free = (HBM_CHANNELS - config.units) * self.channel_bytes
        if not self.ddr_banks and config.aux_bytes > free:
            raise ConfigError(
                f"{where}: aux_bytes = {config.aux_bytes}, the pseudo-channels that are left have {free} "
                "bytes; choose a smaller one"
            )
        refuse_excess(where, self.budget(config))


CORE_UNITS = 9
"""What all but the matrix units takes, in matrix units: 255,000 LUTs over 27,200 on `u280` (Yosys)."""
_MIB = 1 << 20
CARDS = {
    card.name: card
    for card in (
        Card(
            "u280",
            "xcu280-fsvh2892-2L-e",
            "xilinx_u280_gen3x16_xdma_1_202211_1",
            (_BASE_DIE, _UPPER_DIE, _UPPER_DIE),
            256 * _MIB,
            2,
            460e9,
        ),
        Card(
            "u50",
            "xcu50-fsvh2104-2-e",
            "xilinx_u50_gen3x16_xdma_5_202210_1",
            (_BASE_DIE, _UPPER_DIE),
            256 * _MIB,
            0,
            316e9,
        ),
        Card(
            "u55c",
            "xcu55c-fsvh2892-2L-e",
            "xilinx_u55c_gen3x16_xdma_3_202210_1",
            (_BASE_DIE, _UPPER_DIE, _UPPER_DIE),
            512 * _MIB,
            0,
            460e9,
        ),
    )
}


def get(name: str) -> Card:
    """The named card; `ConfigError` with the list of names otherwise."""
    try:
        return CARDS[name]
    except KeyError:
        raise ConfigError(f"unknown card {name!r}; choose one of {', '.join(CARDS)}") from None


def card_of(config: Config) -> Card:
    """The card that a configuration is meant for, by its own or its base's name; u280 for those of no card."""
    return CARDS.get(config.base or config.name, CARDS["u280"])
