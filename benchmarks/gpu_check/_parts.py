"""What the check consists of: parts in their order, each with its seconds and its jobs.

A job is a JSON object: "kind" names a method of `worker.Jobs`, the rest are its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Job = dict[str, Any]

GIB = 2**30
KILO = 1024
DEFAULT_PARTS = ("build", "machine", "selftest", "gradients", "a", "b", "speeds", "kernels")
"""Of one call under 8 minutes; c and d have calls of their own."""
OURS = ("memo", "memo_recompute", "memo_swap")


def described(job: Job) -> dict[str, Any]:
    """A job as its row says it, without lists: rows have one value of a setting."""
    lists = {name for name, value in job.items() if isinstance(value, list)}
    return {"what": job["kind"]} | {k: v for k, v in job.items() if k not in {"kind", *lists}}


def available_bytes() -> int:
    """Memory of the host that programs may still have. Source: Linux, proc(5)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KILO
    return 0


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A Llama with random weights. lora_rank: of the adapters that are trained; 0: train all."""

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    dtype: str = "bfloat16"
    lora_rank: int = 0


LLAMA_8B = Geometry(
    name="Llama-3-8B",
    hidden=4096,
    ffn=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    vocab=128256,
    lora_rank=16,
)
LLAMA_8B_2 = Geometry(**{**LLAMA_8B.__dict__, "name": "Llama-3-8B, 2 layers", "layers": 2})
LLAMA_1B = Geometry(name="1B", hidden=2048, ffn=8192, layers=16, heads=16, kv_heads=8, vocab=32768)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Jobs of one process on one model, in the order of what matters most.

    budget_s: at most so long. jobs: none for what the caller does itself.
    """

    name: str
    budget_s: float
    geometry: Geometry = LLAMA_1B
    jobs: tuple[Job, ...] = ()


def parts(*, tiny: bool) -> list[Part]:
    """All parts, in order; `tiny`: the same with sizes for a CPU."""
    cap_gib, most = (0.004, 512) if tiny else (20.0, 512)
    made = [
        Part(name="build", budget_s=150),
        Part(name="machine", budget_s=30, jobs=({"kind": "machine"},)),
        Part(name="selftest", budget_s=80),
        Part(
            name="gradients",
            budget_s=60,
            jobs=tuple({"kind": "gradients", "mode": m, "tokens": _tokens(8, tiny)} for m in OURS),
        ),
        Part(name="a", budget_s=240, geometry=LLAMA_8B, jobs=tuple(_a(_tokens(128, tiny)))),
        Part(
            name="b",
            budget_s=90,
            geometry=LLAMA_8B_2,
            jobs=({"kind": "step", "mode": "memo", "tokens": 80 if tiny else 500_000},),
        ),
        Part(name="speeds", budget_s=60, jobs=tuple(_speeds(tiny=tiny))),
        Part(name="kernels", budget_s=60),
        Part(
            name="c",
            budget_s=470,
            geometry=LLAMA_8B,
            jobs=(
                {
                    "kind": "step",
                    "mode": "memo",
                    "tokens": 96 if tiny else 350_208,
                    "or_shorter": True,
                },
            ),
        ),
        Part(name="d", budget_s=470, jobs=tuple(_d(cap_gib, most, tiny=tiny))),
    ]
    return [_made_tiny(part) for part in made] if tiny else made


def _tokens(kilo: int, tiny: bool) -> int:
    return kilo * (1 if tiny else KILO)


def _speeds(*, tiny: bool) -> list[Job]:
    backends = ["default"] if tiny else ["default", "flash", "cudnn", "efficient"]
    sizes = [1] if tiny else [1, 8, 64, 256]
    return [
        {"kind": "products"},
        *({"kind": "attention", "backend": each} for each in backends),
        {"kind": "link", "sizes_mib": sizes},
        {"kind": "pinning", "mib": 4 if tiny else 2048},
        {"kind": "calibration"},
    ]


def _a(tokens: int) -> list[Job]:
    """What the claim is about comes first, then the other peers and our ways by hand."""
    modes = ["hf_checkpoint", "memo", "hf_offload", "memo_recompute", "trl_offload", "streambp"]
    return [{"kind": "step", "mode": mode, "tokens": tokens} for mode in [*modes, "memo_swap"]]


def _d(cap_gib: float, most: int, *, tiny: bool) -> list[Job]:
    """Steps by length, tiles at 32K, and the longest length under a cap."""
    lengths = (16, 64) if tiny else (16, 32, 64, 128, 256)
    modes = ("plain", "hf_checkpoint", "memo")
    steps = [
        {"kind": "step", "mode": mode, "tokens": _tokens(length, tiny), "repeats": 2}
        for length in lengths
        for mode in modes
    ]
    tiles = [
        {"kind": "step", "mode": "memo_recompute", "tokens": _tokens(32, tiny), "tile_tokens": t}
        for t in ((8, 16) if tiny else (512, 1024, 2048, 4096, 8192))
    ]
    longest = [
        {"kind": "longest", "mode": mode, "cap_gib": cap_gib, "most": _tokens(most, tiny)}
        for mode in modes
    ]
    return [*steps[: 3 * 3], *tiles, *longest, *steps[3 * 3 :]]


def _made_tiny(part: Part) -> Part:
    small = {"hidden": 64, "ffn": 128, "layers": 2, "heads": 2, "kv_heads": 1, "vocab": 256}
    wide = {**part.geometry.__dict__, **small, "dtype": "float32"}
    return Part(name=part.name, budget_s=part.budget_s, geometry=Geometry(**wide), jobs=part.jobs)
