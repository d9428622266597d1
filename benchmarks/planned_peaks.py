"""What a plan says a step takes, and what it takes: bytes on the device and on the host.

usage: python benchmarks/planned_peaks.py [--families llama gpt2] [--policies swap] [--csv]

Each measurement is a process of its own: a model with AdamW, wrapped, three steps. The second and
the third find AdamW's moments and no gradients; the higher one counts. With alpha 0 or 1 the limit
is the room that the plan itself asks for; the mixed plan's is half-way from there to a step that
keeps everything. `device` is what is alive, `address` what of the limit was used.
"""

import argparse
import gc
import json
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import ResultRow, append_csv, mib, print_table, write_json

GIB = 2**30
POLICIES = ("recompute", "swap", "mixed")
_ALPHAS = {"recompute": 0.0, "swap": 1.0, "mixed": None}
_STEPS = 3
_VOCAB = 512

_HEADS = {"num_attention_heads": 4}
_GROUPED = _HEADS | {"num_key_value_heads": 2}
_SIZES = {"hidden_size": 192, "num_hidden_layers": 6}
_WIDE = _SIZES | {"intermediate_size": 512, "pad_token_id": 0}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 384, "n_routed_experts": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _WIDE | _GROUPED,
    "qwen2": _WIDE | _GROUPED | {"use_sliding_window": False},
    "gemma": _WIDE | _GROUPED | {"head_dim": 48},
    "phi": _WIDE | _HEADS,
    "gpt_neox": _WIDE | _HEADS,
    "opt": _SIZES | _HEADS | {"ffn_dim": 768, "word_embed_proj_dim": 192, "dropout": 0.0},
    "mixtral": _WIDE | _GROUPED | {"num_local_experts": 4, "sliding_window": None},
    "glm4_moe": _WIDE
    | _GROUPED
    | _EXPERTS
    | {"head_dim": 48, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2},
    "olmo2": _WIDE | _HEADS,
    "gpt2": {"n_embd": 192, "n_layer": 6, "n_head": 4}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
"""Model type -> sizes that are not the type's own."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One step, planned and run. Bytes; planned_at: the point of the step that the plan names."""

    family: str
    policy: str
    tokens: int
    tile_tokens: int
    state_bytes: int
    limit_bytes: int
    planned_device_bytes: int
    planned_at: str
    planned_room_bytes: int
    device_bytes: int
    high_water_bytes: int
    planned_host_bytes: int
    host_bytes: int

    @property
    def device_ratio(self) -> float:
        """Planned over measured."""
        return self.planned_device_bytes / self.device_bytes

    @property
    def host_ratio(self) -> float:
        """Planned over measured; 1 where nothing goes to the host."""
        return self.planned_host_bytes / self.host_bytes if self.host_bytes else 1.0


def measure(family: str, policy: str, tokens: int, tile_tokens: int) -> Measured:
    """Plan and run one family's steps in this process, which has held no other model."""
    import torch

    import memo_train
    from memo_train.device import get_cpu_device

    torch.set_num_threads(1)
    device = get_cpu_device()
    model = _model(family, tokens)
    optimizer = torch.optim.AdamW(model.parameters())
    options: dict[str, Any] = {"alpha": _ALPHAS[policy]}
    if options["alpha"] is not None:
        options["tile_tokens"] = tile_tokens
    options["device_gib"] = _limit_bytes(model, options, tokens, tile_tokens) / GIB
    memo_train.wrap(model, seq_len=tokens, **options)
    plan = memo_train.plan(model)
    ids = torch.randint(_VOCAB, (1, tokens))
    device_bytes = high_water = host_bytes = 0
    for step in range(_STEPS):
        gc.collect()
        memo_train.reset_stats()
        model(input_ids=ids, labels=ids).loss.backward()
        found = memo_train.stats()
        if step:
            device_bytes = max(device_bytes, found.device_peak_bytes)
            high_water = max(high_water, device.counters().device_high_water_bytes)
            host_bytes = max(host_bytes, found.host_peak_bytes)
        optimizer.step()
        optimizer.zero_grad()
    return Measured(
        family=family,
        policy=policy,
        tokens=tokens,
        tile_tokens=plan.policy.tile_tokens,
        state_bytes=plan.profile.state_bytes,
        limit_bytes=plan.limits.device_bytes or 0,
        planned_device_bytes=plan.prediction.device_peak_bytes,
        planned_at=plan.prediction.device_peak_point,
        planned_room_bytes=plan.prediction.device_room_bytes,
        device_bytes=device_bytes,
        high_water_bytes=high_water,
        planned_host_bytes=plan.prediction.host_peak_bytes,
        host_bytes=host_bytes,
    )


def _limit_bytes(model: Any, options: dict[str, Any], tokens: int, tile_tokens: int) -> int:
    """The room that a plan asks for; for a mixed plan half-way from there to keeping everything."""
    import memo_train

    least = {"alpha": 0.0, "tile_tokens": tile_tokens} if options["alpha"] is None else options
    needed = []
    for chosen in [least] + ([{}] if options["alpha"] is None else []):
        memo_train.wrap(model, seq_len=tokens, **chosen)
        needed.append(memo_train.plan(model).prediction.device_room_bytes)
        memo_train.unwrap(model)
    gc.collect()
    return sum(needed) // len(needed) + 1


def _model(family: str, tokens: int) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    lengths = ("max_position_embeddings", "n_positions")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(family, vocab_size=_VOCAB, **FAMILIES[family])
        for name in lengths:
            if name in config.to_dict():
                setattr(config, name, tokens)
        make: Any = AutoModelForCausalLM.from_config
        return make(config).train()


def measured_in_a_process(options: argparse.Namespace, family: str, policy: str) -> Measured:
    """`measure` in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", family, policy]
    command += ["--tokens", str(options.tokens), "--tile-tokens", str(options.tile_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{family}, {policy}: {done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    if options.one:
        family, policy = options.one
        print(json.dumps(asdict(measure(family, policy, options.tokens, options.tile_tokens))))
        return
    measured = []
    for family in options.families:
        for policy in options.policies:
            measured.append(measured_in_a_process(options, family, policy))
            print(f"{family}, {policy}: {measured[-1].device_ratio:.3f}", file=sys.stderr)
    _print(measured)
    write_json(options.json, {"steps": [asdict(each) for each in measured]})
    if options.csv:
        append_csv("planned_peaks", [row for each in measured for row in _rows(each)])


def _rows(each: Measured) -> list[ResultRow]:
    settings = f"family={each.family};tokens={each.tokens};tile_tokens={each.tile_tokens}"
    figures = {
        "planned_device_bytes": each.planned_device_bytes,
        "device_bytes": each.device_bytes,
        "high_water_bytes": each.high_water_bytes,
        "device_planned_over_measured": each.device_ratio,
        "planned_host_bytes": each.planned_host_bytes,
        "host_bytes": each.host_bytes,
        "host_planned_over_measured": each.host_ratio,
    }
    return [ResultRow.of(settings, each.policy, name, [value]) for name, value in figures.items()]


def _print(measured: list[Measured]) -> None:
    rows = [
        [
            each.family,
            each.policy,
            f"{each.tile_tokens:,}",
            mib(each.state_bytes),
            mib(each.planned_device_bytes),
            mib(each.device_bytes),
            f"{each.device_ratio:.3f}",
            mib(each.high_water_bytes),
            mib(each.planned_room_bytes),
            mib(each.planned_host_bytes),
            f"{each.host_ratio:.3f}",
            each.planned_at,
        ]
        for each in measured
    ]
    header = ["family", "policy", "tile", "state", "planned", "device", "ratio"]
    header += ["address", "room", "host", "ratio", "at"]
    print_table(f"planned and measured, {measured[0].tokens:,} tokens", header, rows)
    ratios = [each.device_ratio for each in measured]
    print(f"\nplanned / measured on the device: {min(ratios):.3f} to {max(ratios):.3f}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--tile-tokens", type=int, default=256)
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "POLICY"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
