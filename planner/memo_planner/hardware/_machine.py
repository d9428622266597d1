"""A machine: what its devices compute, hold and copy, and where each figure comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from memo_planner.checks import check_fields, check_int, check_number, check_text
from memo_planner.errors import InvalidInput
from memo_planner.profile import Link

_WHOLE = (
    "gpus_per_node",
    "device_bytes",
    "reserve_bytes",
    "host_nominal_bytes",
    "host_usable_bytes",
)


@dataclass(frozen=True, kw_only=True)
class AttentionShare:
    """Of peak FLOP/s, reached by attention over `tokens`. Raises: InvalidInput outside (0, 1]."""

    tokens: int
    share: float

    def __post_init__(self) -> None:
        check_int("AttentionShare.tokens", self.tokens, 1)
        _check_share("AttentionShare.share", self.share)


def _check_share(name: str, value: float) -> None:
    if not 0 < check_number(name, value) <= 1:
        raise InvalidInput(f"{name} is {value}; it is a share of peak, above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of a device's peak FLOP/s: of its matrix products, and of attention.

    `tile_overhead_s`: seconds that one more tile adds to a pass (launches of small kernels).
    `tile_issue_s`: as in `BlockTimes`. `machine`: whose shares these are; for any other machine
    they are assumptions. `attention_by_length`: where it was measured, the shortest length first.
    Raises: InvalidInput outside (0, 1].
    """

    linear: float
    attention: float
    tile_overhead_s: float
    source: str
    machine: str
    tile_issue_s: float = 0.0
    attention_by_length: tuple[AttentionShare, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, ("linear", "attention", "tile_overhead_s", "tile_issue_s"))
        check_text("Efficiency.source", self.source)
        check_text("Efficiency.machine", self.machine)
        for name in ("linear", "attention"):
            _check_share(f"Efficiency.{name}", getattr(self, name))

    def attention_at(self, tokens: int) -> float:
        """Attention's share over `tokens`: that of the longest measured length that is no longer.

        Shorter sequences than any take the share of the shortest; without lengths it is the same
        for all.
        """
        reached = [each.share for each in self.attention_by_length if each.tokens <= tokens]
        first = [each.share for each in self.attention_by_length[:1]]
        return [self.attention, *first, *reached][-1]

    def source_on(self, machine: str) -> str:
        """Where the shares come from, as a plan for `machine` has to say it."""
        if machine == self.machine:
            return self.source
        return f"assumption: those of {self.machine} ({self.source})"


PAPER = Efficiency(
    linear=0.601,
    attention=0.644,
    tile_overhead_s=2e-4,
    source="fitted on three cells of the paper's 7B ablation by benchmarks/paper_table.py",
    machine="a800-80g-x8",
)
"""What the paper's implementation reached on its A800 nodes."""


@dataclass(frozen=True, kw_only=True)
class FigureSource:
    """Where one figure of a `Hardware` comes from."""

    figure: str
    source: str

    def __post_init__(self) -> None:
        check_text("FigureSource.figure", self.figure)
        check_text("FigureSource.source", self.source)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of node; a job may use several of them.

    Attributes:
        gpus_per_node: devices (ranks) of a node.
        peak_flops: FLOP/s of one device in the dtype that trains (bf16 without sparsity; fp32 on
            `cpu`).
        device_bytes: memory of one device. reserve_bytes: of these, what no tensor gets: context,
            collective buffers, kernels' work space.
        host_nominal_bytes: memory of a node. host_usable_bytes: what all ranks of a node together
            may pin.
        d2h_alone_bytes_per_s, h2d_alone_bytes_per_s: one rank copying.
        d2h_loaded_bytes_per_s, h2d_loaded_bytes_per_s: each rank, all ranks of a node copying.
        intra_node_bytes_per_s, inter_node_bytes_per_s: what one device sends to others of its
            node, or of other nodes.
        sources: for each figure, where it comes from.

    Raises: InvalidInput on a figure out of range or without a source.
    """

    name: str
    gpus_per_node: int
    peak_flops: float
    device_bytes: int
    reserve_bytes: int
    host_nominal_bytes: int
    host_usable_bytes: int
    d2h_alone_bytes_per_s: float
    h2d_alone_bytes_per_s: float
    d2h_loaded_bytes_per_s: float
    h2d_loaded_bytes_per_s: float
    intra_node_bytes_per_s: float
    inter_node_bytes_per_s: float
    sources: tuple[FigureSource, ...]

    def __post_init__(self) -> None:
        check_text("Hardware.name", self.name)
        for name in _WHOLE:
            check_int(f"Hardware.{name}", getattr(self, name), 0 if name == "reserve_bytes" else 1)
        check_fields(self, tuple(n for n in FIGURES if n not in _WHOLE), least=1.0)
        if self.reserve_bytes >= self.device_bytes:
            raise InvalidInput(
                f"{self.name}: reserve_bytes is {self.reserve_bytes:,} of device_bytes "
                f"{self.device_bytes:,}; it must leave something"
            )
        named = [each.figure for each in self.sources]
        if sorted(named) != sorted(FIGURES):
            raise InvalidInput(
                f"{self.name}: sources name {sorted(named)}; they name each of "
                f"{sorted(FIGURES)} once"
            )

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one device that tensors may use."""
        return self.device_bytes - self.reserve_bytes

    def link(self, ranks_on_node: int) -> Link:
        """Speed of the copies of each of `ranks_on_node` ranks: alone, or with all copying."""
        if ranks_on_node == 1:
            return Link(
                d2h_bytes_per_s=self.d2h_alone_bytes_per_s,
                h2d_bytes_per_s=self.h2d_alone_bytes_per_s,
            )
        return Link(
            d2h_bytes_per_s=self.d2h_loaded_bytes_per_s,
            h2d_bytes_per_s=self.h2d_loaded_bytes_per_s,
        )

    def source_of(self, figure: str) -> str:
        """Where `figure` comes from."""
        return next(each.source for each in self.sources if each.figure == figure)

    def with_figures(self, source: str, **figures: float) -> Hardware:
        """The same machine with other `figures`, all from `source`.

        Raises: InvalidInput on a figure there is none of, or out of range.
        """
        unknown = sorted(set(figures) - set(FIGURES))
        if unknown:
            raise InvalidInput(f"{unknown} are no figures of a machine; there are {FIGURES}")
        whole = {n: int(v) if n in _WHOLE else v for n, v in figures.items()}
        sources = tuple(
            FigureSource(figure=each.figure, source=source) if each.figure in figures else each
            for each in self.sources
        )
        return replace(self, sources=sources, **whole)  # type: ignore[arg-type]


FIGURES = tuple(field.name for field in fields(Hardware) if field.name not in ("name", "sources"))
"""Names of a machine's figures."""
