"""Cards: what a configuration has to fit, and where each figure comes from. Standard library only."""

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
    "u50_masters": "v++'s own words for a U50: `HBM[0] has 1 interface that can support 30 possible masters` (error "
    "CFGEN 83-2231, in issue 75 of Xilinx/Vitis_Accel_Examples).",
    "sll": "not confirmed in AMD's text here: 23,040 wires a boundary is what several public projects with reports of "
    "U280 builds give (59.24 % of 23,040 used, in one); U50 and U55C are made of the same dies.",
    "platforms": "names used by public projects that build for these cards; U50 Gen3x16 XDMA base 5: UG1120.",
    "u280_region": "dynamic region of xilinx_u280_gen3x16_xdma_1_202211_1: a device file of RapidStream, extracted "
    "from Vivado, in the public repository Crazy-James26/FlexLLM (u280_device.json, commit c740cda); the two slots of "
    "each die added, block RAMs of 18 Kb halved.",
    "v80_device": "totals, 18,870 wires a boundary and 76 NoC masters of 512 bits of xcv80-lsva4737-2MHP-e-S: a report "
    "of Vivado 2024.2 in the public repository LUT-FPGA/LUT-LLM (qwen_block/qwen_utilization.rpt, commit 62704d3). "
    "Dies: its rapidstream_script/v80_device.json (commit d29b047), the two slots of each die added, block RAMs of "
    "18 Kb halved; its 714 UltraRAMs of SLR1 are 90 more than the report's total leaves, so 624 are taken.",
    "v80_memory": "64 pseudo-channels of 512 MiB, four DDR ports, buffers of at most 512 MiB, a kernel clock up to "
    "333 MHz: Xilinx/SLASH, commit 26f9c55 (linker/slashkit/resources/bd_ports.txt, vrt/vrtd/src/allocator.h and .c, "
    "vrt/include/vrt/device.hpp). 820 GB/s in all, 12.8 GB/s a pseudo-channel: LUT-FPGA/LUT-LLM "
    "(qwen_lut_model/v80.json, commit c169495); AMD's own text was not found here.",
    "v80_dsp": "UG1273: a design with DSP48E2 instances moves to Versal, whose DSP58 takes them.",
}
"""Totals are the device's; `REGIONS` says what a platform's shell leaves of them, where that is known."""

VITIS, SLASH, NO_SHELL = "vitis", "slash", "none"
"""What builds a card and hosts it: AMD's Vitis and XRT; AMD's SLASH; nothing but Vivado's packager."""


def _ultrascale(clbs: int, block_rams: int, ultra_rams: int, dsps: int) -> dict[str, int]:
    """A die of UltraScale+: a CLB has 8 LUTs and 16 flip-flops."""
    return {"LUT": 8 * clbs, "FF": 16 * clbs, "BRAM36": block_rams, "URAM": ultra_rams, "DSP48E2": dsps}


_BASE_DIE = _ultrascale(54960, 672, 320, 2880)
_UPPER_DIE = _ultrascale(54000, 672, 320, 3072)


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
    """One card. One without dies is no card at all: `GENERIC`, of which nothing is known and nothing refused."""

    name: str
    part: str
    platform: str
    """What the tools call the shell; empty: there is none."""
    dies: tuple[dict[str, int], ...] = ()
    """Resources of each SLR, SLR0 (with the HBM) first, named as in `hw.synth.KINDS`."""
    channel_bytes: int = 0
    """Of a pseudo-channel."""
    ddr_banks: int = 0
    flow: str = VITIS
    """VITIS, SLASH or NO_SHELL."""
    hbm_channels: int = 32
    """Pseudo-channels."""
    masters: int = 32
    """Kernel masters that the shell can connect to HBM, with a network on chip to any memory."""
    crossing_wires: int = 23040
    """Super long lines over a boundary of two dies, both directions together."""
    noc: bool = False
    """Memory is reached through a network on chip, which has ports on every die: no read data crosses in wires."""

    @property
    def slrs(self) -> int:
        return len(self.dies)

    def slr(self, index: int) -> dict[str, int]:
        """Resources of one SLR, named as in `hw.synth.KINDS`."""
        return dict(self.dies[index])

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

    def bank(self, kind: str, index: int | str) -> str:
        """A memory's name in the linker's language: `HBM[3]` for v++, `HBM3` for SLASH."""
        return f"{kind}{index}" if self.flow == SLASH else f"{kind}[{index}]"

    def memory_of(self, config: Config, port: int) -> str:
        """The memory bank, as the linker names it, behind a memory port: a pseudo-channel for each matrix unit; for aux
        the card's DDR, else the pseudo-channels that are left. Without a card: "channel 3", "aux"."""
        if not self.dies:
            return "aux" if port == config.aux_port else f"channel {port}"
        if port != config.aux_port:
            return self.bank("HBM", port)
        if self.ddr_banks:
            return self.bank("DDR", 0)
        first, last = config.units, self.hbm_channels - 1
        return self.bank("HBM", first if first == last else f"{first}:{last}")

    def memory_masters(self, config: Config) -> int:
        """Masters that take one of the shell's ports to memory: the matrix units', and that of aux, unless the card has
        DDR with a port of its own."""
        return config.units + (self.noc or not self.ddr_banks)

    def luts_left(self) -> list[int]:
        """LUTs of each SLR that a kernel can hope for: SLR0's without what the HBM takes beside it."""
        dies = self.region.dies if self.region else self.dies
        return [die["LUT"] - (HBM_LUTS if number == 0 else 0) for number, die in enumerate(dies)]

    def floorplan(self, config: Config) -> dict[int, list[int]]:
        """SLR -> matrix units, so that with the core on `core_slr` all SLRs are as full. SLR0, with the shell and the
        HBM, is the last to get one more."""
        counts = dict.fromkeys(range(self.slrs), 0)
        for _ in range(config.units if counts else 0):
            counts[min(counts, key=lambda slr: (counts[slr] + CORE_UNITS * (slr == self.core_slr), -slr))] += 1
        units = iter(range(config.units))
        return {slr: list(islice(units, n)) for slr, n in counts.items()}

    def budget(self, config: Config) -> list[Row]:
        """What the configuration takes of the card; empty without a card. Limits are the device's; what is above the
        platform's region is not refused, but each row says what share of it that is."""
        if not self.dies:
            return []
        plan = self.floorplan(config)
        rows = budget(config, self.resources, plan, self.core_slr, self.crossing_wires, self.noc)
        if self.region is None:
            return rows
        return [with_platform(row, self.region.resources, self.region.crossings) for row in rows]

    def check(self, config: Config) -> None:
        """ConfigError if the configuration's ports, memories or resources do not fit the card."""
        if not self.dies:
            return
        where = f"configuration {config.name!r} on {self.name}"
        if (masters := self.memory_masters(config)) > self.masters:
            raise ConfigError(
                f"{where}: {masters} masters need {'a NoC' if self.noc else 'an HBM'} port each, the card has "
                f"{self.masters}{'' if self.ddr_banks else ' and no DDR'}; choose a configuration of fewer units, such "
                f"as {self.name}"
            )
        if config.units > self.hbm_channels:
            raise ConfigError(
                f"{where}: units = {config.units} need a pseudo-channel each, the card has {self.hbm_channels}; choose "
                f"a configuration of fewer units, such as {self.name}"
            )
        if config.channel_bytes > self.channel_bytes:
            raise ConfigError(
                f"{where}: channel_bytes = {config.channel_bytes}, a pseudo-channel has "
                f"{self.channel_bytes} bytes; choose a smaller one"
            )
        free = (self.hbm_channels - config.units) * self.channel_bytes
        if not self.ddr_banks and config.aux_bytes > free:
            raise ConfigError(
                f"{where}: aux_bytes = {config.aux_bytes}, the pseudo-channels that are left have {free} "
                "bytes; choose a smaller one"
            )
        refuse_excess(where, self.budget(config))


HBM_LUTS = 100_000
"""Set aside on SLR0 for what connects the kernel's ports to the HBM: a reserve, not a count."""
CORE_UNITS = 9
"""By so many matrix units fewer is the core's die filled than the others. On `u280` the core takes as many LUTs as 15
units (246,000 over 16,100, Yosys), and its die holds 5 of them: on another die each would cross to the core in 656
wires and, on SLR2, to its memory in 591."""
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
            ddr_banks=2,
        ),
        Card(
            "u50",
            "xcu50-fsvh2104-2-e",
            "xilinx_u50_gen3x16_xdma_5_202210_1",
            (_BASE_DIE, _UPPER_DIE),
            256 * _MIB,
            masters=30,
        ),
        Card(
            "u55c",
            "xcu55c-fsvh2892-2L-e",
            "xilinx_u55c_gen3x16_xdma_3_202210_1",
            (_BASE_DIE, _UPPER_DIE, _UPPER_DIE),
            512 * _MIB,
        ),
        Card(
            "v80",
            "xcv80-lsva4737-2MHP-e-S",
            "SLASH",
            (
                {"LUT": 900224, "FF": 1800448, "BRAM36": 1341, "URAM": 677, "DSP48E2": 3984},
                {"LUT": 820224, "FF": 1640448, "BRAM36": 1200, "URAM": 624, "DSP48E2": 3456},
                {"LUT": 853760, "FF": 1707520, "BRAM36": 1200, "URAM": 624, "DSP48E2": 3408},
            ),
            512 * _MIB,
            ddr_banks=4,
            flow=SLASH,
            hbm_channels=64,
            masters=76,
            crossing_wires=18870,
            noc=True,
        ),
    )
}
GENERIC = Card("generic", "", "", flow=NO_SHELL)
"""A core for any Vivado project: whoever connects it knows the device."""
_NAMED = CARDS | {GENERIC.name: GENERIC}


def get(name: str) -> Card:
    """The named card, or `GENERIC`; `ConfigError` with the list of names otherwise."""
    try:
        return _NAMED[name]
    except KeyError:
        raise ConfigError(f"unknown card {name!r}; choose one of {', '.join(_NAMED)}") from None


def card_of(config: Config) -> Card:
    """The card that a configuration is meant for, by its own or its base's name; u280 for those of no card."""
    return CARDS.get(config.base or config.name, CARDS["u280"])
