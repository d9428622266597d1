"""A machine as it was measured (`memo-plan hardware --measure`), and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.codec import decode, encode, hash_of, read_document, write_document
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.hardware._machine import AttentionShare, Efficiency, Hardware
from memo_planner.trace import LinkRates

FORMAT = "memo-machine"
VERSION = 1
CHOSEN = "default"
"""The attention backend that torch picks by itself: the one that plans go by."""

_BACKWARD = 2.5
"""FLOPs of attention's backward over its forward."""


@dataclass(frozen=True, kw_only=True)
class ProductRate:
    """FLOP/s of a block's largest matrix product over a tile of `tokens`."""

    tokens: int
    flops_per_s: float

    def __post_init__(self) -> None:
        check_int("ProductRate.tokens", self.tokens, 1)
        check_fields(self, ("flops_per_s",), least=1.0)


@dataclass(frozen=True, kw_only=True)
class AttentionRate:
    """FLOP/s of causal attention at one length by one of torch's backends, each way.

    Backward counts as 2.5 forwards. Source: FlashAttention-2, section on benchmarks.
    """

    backend: str
    tokens: int
    forward_flops_per_s: float
    backward_flops_per_s: float

    def __post_init__(self) -> None:
        check_text("AttentionRate.backend", self.backend)
        check_int("AttentionRate.tokens", self.tokens, 1)
        check_fields(self, ("forward_flops_per_s", "backward_flops_per_s"), least=1.0)

    @property
    def flops_per_s(self) -> float:
        """Of both ways together."""
        seconds = 1 / self.forward_flops_per_s + _BACKWARD / self.backward_flops_per_s
        return (1 + _BACKWARD) / seconds


@dataclass(frozen=True, kw_only=True)
class MachineFile:
    """What was measured on a machine. `save` and `load` keep it as JSON (docs/formats.md).

    Attributes:
        software: versions it was measured with. hardware: the figures; each has its source.
        products: by tile, at least one. attention: by backend and length, at least one of
            `CHOSEN`. link_rates: each way alone, both at once, and with all ranks copying.
        launch_s: in which the host asks for one small operation.
        tile_overhead_s, tile_issue_s: of a pass over a tile, as in `BlockTimes`.

    Raises: InvalidInput if the parts do not belong together.
    """

    version: int
    software: str
    hardware: Hardware
    products: tuple[ProductRate, ...]
    attention: tuple[AttentionRate, ...]
    link_rates: LinkRates
    launch_s: float
    tile_overhead_s: float
    tile_issue_s: float
    measured_hash: str

    def __post_init__(self) -> None:
        check_int("MachineFile.version", self.version, VERSION, VERSION)
        check_text("MachineFile.software", self.software)
        check_fields(self, ("launch_s", "tile_overhead_s", "tile_issue_s"))
        if not self.products or not any(rate.backend == CHOSEN for rate in self.attention):
            raise InvalidInput(
                f"{self.hardware.name}: {len(self.products)} products and attention by "
                f"{sorted({rate.backend for rate in self.attention})} were measured; it needs a "
                f"product and attention by {CHOSEN!r}"
            )
        most = max([r.flops_per_s for r in self.products] + [r.flops_per_s for r in self.attention])
        if most > self.hardware.peak_flops:
            raise InvalidInput(
                f"{self.hardware.name}: {most:.4g} FLOP/s were measured, above its peak_flops of "
                f"{self.hardware.peak_flops:.4g}"
            )
        expected = _hash(self)
        if self.measured_hash != expected:
            raise InvalidInput(
                f"measured_hash is {self.measured_hash!r}, what it is of gives {expected!r}"
            )

    @classmethod
    def of(
        cls,
        *,
        software: str,
        hardware: Hardware,
        rates: tuple[tuple[ProductRate, ...], tuple[AttentionRate, ...], LinkRates],
        launch_s: float,
        tile_s: tuple[float, float],
    ) -> MachineFile:
        """A file of the current version. tile_s: tile_overhead_s and tile_issue_s."""
        parts = {
            "software": software,
            "hardware": hardware,
            "products": rates[0],
            "attention": rates[1],
            "link_rates": rates[2],
            "launch_s": launch_s,
            "tile_overhead_s": tile_s[0],
            "tile_issue_s": tile_s[1],
        }
        return cls(version=VERSION, measured_hash=_hash_of(parts), **parts)  # type: ignore[arg-type]

    @property
    def efficiency(self) -> Efficiency:
        """The shares of peak that plans go by: the best product, attention by length."""
        peak = self.hardware.peak_flops
        chosen = sorted(
            (rate for rate in self.attention if rate.backend == CHOSEN), key=lambda r: r.tokens
        )
        by_length = tuple(
            AttentionShare(tokens=rate.tokens, share=rate.flops_per_s / peak) for rate in chosen
        )
        return Efficiency(
            linear=max(rate.flops_per_s for rate in self.products) / peak,
            attention=by_length[-1].share,
            attention_by_length=by_length,
            tile_overhead_s=self.tile_overhead_s,
            tile_issue_s=self.tile_issue_s,
            source=f"measured there with {self.software}",
            machine=self.hardware.name,
        )

    def save(self, path: str | Path) -> None:
        """Write the file as JSON. Raises: OSError."""
        write_document(Path(path), {"format": FORMAT, **encode(self)})

    @classmethod
    def load(cls, path: str | Path) -> MachineFile:
        """Read a file and check it: version, fields, types, hash.

        Raises: PlanFileError naming the file and what is wrong.
        """
        document = read_document(Path(path), format=FORMAT, version=VERSION)
        del document["format"]
        try:
            return decode(cls, document, "machine file")
        except InvalidInput as error:
            raise PlanFileError(f"{path}: {error}") from error


def _hash(file: MachineFile) -> str:
    names = (n for n in MachineFile.__dataclass_fields__ if n not in ("version", "measured_hash"))
    return _hash_of({name: getattr(file, name) for name in names})


def _hash_of(parts: dict[str, object]) -> str:
    return hash_of({name: encode(value) for name, value in parts.items()})
