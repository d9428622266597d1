"""How fast a device that is only imagined would be."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_fields


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What a fake step's clock counts by. All figures are assumptions of whoever gives them.

    flops_per_s: the device's peak. matmul_efficiency, attention_efficiency: the share of it that
    matrix products and attention reach, above 0 and at most 1.
    memory_bytes_per_s: for all other operations, by the bytes that they read and write.
    op_overhead_s: seconds that every operation takes besides.
    d2h_bytes_per_s, h2d_bytes_per_s: the link's, each way.

    Raises: InvalidInput.
    """

    flops_per_s: float
    matmul_efficiency: float
    attention_efficiency: float
    memory_bytes_per_s: float
    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    op_overhead_s: float = 0.0

    def __post_init__(self) -> None:
        rates = ("flops_per_s", "memory_bytes_per_s", "d2h_bytes_per_s", "h2d_bytes_per_s")
        check_fields(self, rates, least=1.0)
        check_fields(self, ("matmul_efficiency", "attention_efficiency"), least=1e-6, most=1.0)
        check_fields(self, ("op_overhead_s",))


A800 = Speeds(
    flops_per_s=312e12,
    matmul_efficiency=0.6,
    attention_efficiency=0.55,
    memory_bytes_per_s=2.0e12,
    d2h_bytes_per_s=32e9,
    h2d_bytes_per_s=32e9,
)
"""312 TFLOP/s in bf16 and 32 GB/s: MEMO §experiments; 2 TB/s of memory: the vendor's data sheet
of the A100 80 GB. The efficiencies are round guesses, to be replaced by measured ones."""
