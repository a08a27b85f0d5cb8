"""What kernels of one entry point share: builder, geometry, regions, records and the registers of the current tile."""

from dataclasses import dataclass, field
from typing import Any

from ..geometry import Geometry
from ..ir import Norm, linears
from ..layout import SHIFTS, Record
from .builder import At, Builder, Rows, Value
from .regions import Region


@dataclass
class Context:
    """`m` tokens are worked on; their residual rows start at word `x` of region X, their maxima at entry `a` of A."""

    b: Builder
    geo: Geometry
    regions: dict[str, Region]
    width: int
    m: Any = 1
    x: Any = 0
    a: Any = 0
    records: dict[str, Record] = field(default_factory=dict)
    pointers: dict[str, Any] = field(default_factory=dict)
    """Beat addresses of the current layer's params, weights, cache and scales records."""
    shift_slots: dict[str, int] = field(default_factory=dict)
    """Byte of the shifts beat of every linear layer."""
    operand: str = "XQ"
    """OB region that holds what the next residual linear layer multiplies."""

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    # --- operands --------------------------------------------------------------------------------------

    def residual(self) -> At:
        return At(self["X"], self.geo.words(self.width), 0, self.x)

    def maxima(self) -> Rows:
        """Entries of the residual rows' absolute maxima."""
        return Rows(self["A"], 1, 0, self.a)

    def rows(self, region: str, width: int) -> At:
        """Rows of `width` values in a VB region (or blocks in OB)."""
        step = self.geo.granules(width) if self[region].buffer == "OB" else self.geo.words(width)
        return At(self[region], step)

    def parameter(self, name: str) -> At:
        return At(self["P:" + name])

    # --- loads -----------------------------------------------------------------------------------------

    def load_parameter(self, name: str) -> None:
        """A field of the parameter record into its PB region."""
        record = self.records["params"]
        self.b.load(self.pointers["params"] + record[name], self["P:" + name], record.sizes[name])

    def load_parameters(self, op) -> None:
        """Everything the record holds for one fused operator."""
        names = [op.name] if isinstance(op, Norm) else [linear.name for linear in linears([op])]
        for name in names:
            for field_name in (f"{name}.words", f"{name}.bias"):
                if field_name in self.records["params"].sizes:
                    self.load_parameter(field_name)

    def load_shifts(self, ops: list) -> None:
        """The operators' G bytes into registers, four a register."""
        names = [op.name for op in linears(ops)]
        self.shift_slots = {name: at for at, name in enumerate(names)}
        pointer = self.pointers["params"]
        address: Value = pointer * 16 if isinstance(pointer, int) else self.b.shift(self.b.reg("_g"), pointer, 4)
        if isinstance(address, int):
            address = self.b.set(self.b.reg("_g"), address)
        for word in range((len(names) + 3) // 4):
            self.b.load_word(self.b.reg(f"shifts{word}"), address + (16 * self.records["params"][SHIFTS] + word))

    def control(self, linear: str, sh3: int = 0) -> Value:
        """ctl1 of a linear pass: G in adj2."""
        word, byte = divmod(self.shift_slots[linear], 4)
        target = self.b.reg("_g")
        self.b.shift(target, self.b.reg(f"shifts{word}"), 24 - 8 * byte)
        self.b.shift(target, target, -24)
        return self.b.shift(target, target, 8) + (sh3 << 16)

    # --- weights ---------------------------------------------------------------------------------------

    def stream(self, name: str) -> None:
        """Read a linear layer's weight stream."""
        record = self.records["weights"]
        self.b.read(self.pointers["weights"] + record[name], record.sizes[name])

