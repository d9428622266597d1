"""Machines by name. Every figure says where it comes from; all of them can be overridden."""

from __future__ import annotations

from memo_planner.errors import InvalidInput
from memo_planner.hardware._machine import PAPER, Efficiency, FigureSource, Hardware

GB = 10**9
TB = 10**12
GIB = 2**30
MIB = 2**20
PAPER_LINK_BYTES_PER_S = 10.4e9
"""What each of 8 ranks of the paper's A800 node reached: fitted by benchmarks/paper_table.py."""
LOADED_SHARE = 0.325
"""Of a link's nominal speed, with all ranks copying: 10.4 of 32 GB/s on the paper's A800 node."""
RESERVE_BYTES = 4 * GIB

_RESERVE = (
    "assumption: 4 GiB for CUDA context, NCCL buffers, work spaces of kernels and graph pools; "
    "measure it on your machine"
)
_SHARED = (
    "assumption: 0.325 of the nominal speed, the share that 8 ranks of the paper's A800 node "
    "reached; measure it under load"
)
_HALF = "assumption: half of nominal, as pinned memory outside the local NUMA node often is"

Entry = tuple[float, str]


def machine(name: str) -> Hardware:
    """The machine of that name. Raises: InvalidInput, naming those there are."""
    if name not in NAMED:
        raise InvalidInput(f"hardware {name!r} is not known; known: {', '.join(NAMED)}")
    return NAMED[name]


def _machine(name: str, **entries: Entry) -> Hardware:
    figures = {figure: value for figure, (value, _) in entries.items()}
    sources = tuple(FigureSource(figure=f, source=s) for f, (_, s) in entries.items())
    return Hardware(name=name, sources=sources, **figures)  # type: ignore[arg-type]


def _link(bytes_per_s: float, nominal: str, loaded: Entry) -> dict[str, Entry]:
    """Alone: the nominal speed less a fifth that packets and protocol take."""
    alone = (
        0.8 * bytes_per_s,
        f"{nominal}; assumption: 0.8 of it reached by one rank with pinned memory",
    )
    return {
        "d2h_alone_bytes_per_s": alone,
        "h2d_alone_bytes_per_s": alone,
        "d2h_loaded_bytes_per_s": loaded,
        "h2d_loaded_bytes_per_s": loaded,
    }


_A800 = _machine(
    "a800-80g-x8",
    gpus_per_node=(8, "MEMO, set-up of the experiments"),
    peak_flops=(312e12, "MEMO, set-up: 312 TFLOP/s bf16, as NVIDIA's A100 datasheet"),
    device_bytes=(81_251 * MIB, "assumption: 81,251 MiB as nvidia-smi shows for A800 80GB"),
    reserve_bytes=(RESERVE_BYTES, _RESERVE),
    host_nominal_bytes=(2 * TB, "MEMO, set-up: 2 TB a node"),
    host_usable_bytes=(
        int(0.96 * 2**40),
        "derived from MEMO's tables: host memory in use never passed about 0.96 TiB",
    ),
    **_link(
        32 * GB,
        "MEMO, set-up: 32 GB/s (PCIe 4.0 x16)",
        (
            PAPER_LINK_BYTES_PER_S,
            "fitted on MEMO's tables by benchmarks/paper_table.py; other readings of them give "
            "8.3 to 10 GB/s a rank with 8 ranks copying",
        ),
    ),
    intra_node_bytes_per_s=(200 * GB, "MEMO, set-up: NVLink 400 GB/s, counted both ways"),
    inter_node_bytes_per_s=(25 * GB, "MEMO, set-up: InfiniBand 200 GB/s a node, over 8 ranks"),
)

_A100 = _machine(
    "a100-80g-x8",
    gpus_per_node=(8, "NVIDIA HGX A100"),
    peak_flops=(312e12, "NVIDIA A100 datasheet: 312 TFLOP/s bf16 without sparsity"),
    device_bytes=(81_920 * MIB, "assumption: 81,920 MiB as nvidia-smi shows for A100-SXM4-80GB"),
    reserve_bytes=(RESERVE_BYTES, _RESERVE),
    host_nominal_bytes=(2 * TB, "NVIDIA DGX A100 640GB datasheet: 2 TB"),
    host_usable_bytes=(1_800 * GB, "assumption: nine tenths of nominal"),
    **_link(
        32 * GB,
        "NVIDIA A100 datasheet: PCIe 4.0 x16, 64 GB/s both ways",
        (LOADED_SHARE * 32 * GB, _SHARED),
    ),
    intra_node_bytes_per_s=(300 * GB, "NVIDIA A100 datasheet: NVLink 600 GB/s, counted both ways"),
    inter_node_bytes_per_s=(25 * GB, "NVIDIA DGX A100 datasheet: a 200 Gb/s adapter a GPU"),
)

_H100 = _machine(
    "h100-80g-x8",
    gpus_per_node=(8, "NVIDIA HGX H100"),
    peak_flops=(989e12, "NVIDIA H100 SXM datasheet: 989 TFLOP/s bf16 without sparsity"),
    device_bytes=(81_559 * MIB, "assumption: 81,559 MiB as nvidia-smi shows for H100 80GB HBM3"),
    reserve_bytes=(RESERVE_BYTES, _RESERVE),
    host_nominal_bytes=(2 * TB, "NVIDIA DGX H100 datasheet: 2 TB"),
    host_usable_bytes=(1_800 * GB, "assumption: nine tenths of nominal"),
    **_link(
        64 * GB,
        "NVIDIA H100 SXM datasheet: PCIe 5.0 x16, 128 GB/s both ways",
        (LOADED_SHARE * 64 * GB, _SHARED),
    ),
    intra_node_bytes_per_s=(450 * GB, "NVIDIA H100 datasheet: NVLink 900 GB/s, counted both ways"),
    inter_node_bytes_per_s=(50 * GB, "NVIDIA DGX H100 datasheet: a 400 Gb/s adapter a GPU"),
)

_ONE_H200 = "measured on one H200, one rank"
_H200 = _H100.with_figures(
    f"{_ONE_H200}: as CUDA tells, 526 MiB of it taken once CUDA is loaded",
    device_bytes=143_155 * MIB,
).with_figures(
    f"{_ONE_H200}: pinned copies of 256 MiB, one direction at a time",
    d2h_alone_bytes_per_s=55.1e9,
    h2d_alone_bytes_per_s=54.4e9,
)

_RTX4090 = _machine(
    "rtx4090-24g-x8",
    gpus_per_node=(8, "a server with eight cards"),
    peak_flops=(165.2e12, "NVIDIA Ada whitepaper: 165.2 TFLOP/s bf16 with fp32 sums, no sparsity"),
    device_bytes=(24_564 * MIB, "assumption: 24,564 MiB as nvidia-smi shows for RTX 4090"),
    reserve_bytes=(2 * GIB, "assumption: 2 GiB for CUDA context, NCCL buffers, work spaces"),
    host_nominal_bytes=(512 * GIB, "assumption: a server with 512 GiB"),
    host_usable_bytes=(460 * GIB, "assumption: nine tenths of nominal"),
    **_link(
        32 * GB,
        "NVIDIA Ada whitepaper: PCIe 4.0 x16",
        (LOADED_SHARE * 32 * GB, _SHARED),
    ),
    intra_node_bytes_per_s=(12 * GB, "assumption: no NVLink and no peer access: through the host"),
    inter_node_bytes_per_s=(6 * GB, f"{_HALF}; assumption: two cards share a 100 Gb/s adapter"),
)

_CPU = _machine(
    "cpu",
    gpus_per_node=(1, "one CPU device a process"),
    peak_flops=(1e11, "assumption: two cores, fp32, AVX2; override it with a measurement"),
    device_bytes=(GIB, "assumption: an arena of 1 GiB; the cap is yours to set"),
    reserve_bytes=(0, "the arena holds tensors only"),
    host_nominal_bytes=(4 * GIB, "assumption: a host pool of 4 GiB; the cap is yours to set"),
    host_usable_bytes=(4 * GIB, "assumption: a host pool of 4 GiB; the cap is yours to set"),
    **_link(5 * GB, "assumption: memory to memory", (4 * GB, "assumption: memory to memory")),
    intra_node_bytes_per_s=(2 * GB, "assumption: gloo over shared memory"),
    inter_node_bytes_per_s=(GB, "assumption: gloo over 10 Gb/s Ethernet"),
)

NAMED = {
    each.name: each
    for each in (
        _A800,
        _A100,
        _H100,
        Hardware(**{**_H200.__dict__, "name": "h200-141g-x8"}),
        _RTX4090,
        _CPU,
    )
}
"""All named machines."""

_ON_H200 = Efficiency(
    linear=0.555,
    attention=0.65,
    tile_overhead_s=6e-4,
    tile_issue_s=3.2e-3,
    source=(
        "measured on one H200 as `wrap` profiles blocks: products with all else that a tile asks "
        "for, of a 1B Llama in bf16; attention of the 8B's widths, to 32,768 tokens"
    ),
    machine="h200-141g-x8",
)
_SAME_CHIP = ("h100", "h200")


def efficiency_on(name: str) -> Efficiency:
    """The shares of peak that were measured for the closest chip; name: a machine's or a GPU's."""
    return _ON_H200 if any(chip in name.lower() for chip in _SAME_CHIP) else PAPER
