"""What benchmarks/paper_table.py assumes, and where the paper's printed facts disagree."""

from benchmarks.paper_cells import ALPHA, OUT_OF_HOST, K
from benchmarks.paper_fit import ABLATION_PARALLEL, Fit
from memo_planner.programme import predict
from memo_planner.strategies import Strategy, fixed_policies

GIB = 2**30
TIB = 2**40

ASSUMPTIONS = (
    "printed: TP 4, CP 2 for the ablation and the alpha table; 312 TFLOP/s; 32 GB/s a link; NVLink "
    "400 GB/s; InfiniBand 200 GB/s a node; 2 TB host a node",
    "derived from the printed tables: MFU counts 6 s P + 6 n h s^2; 16 sequences a step; 0.96 TiB "
    "of a node's host memory usable",
    "fitted, on the three cells named above: one efficiency of all matrix products, one of "
    "attention, one speed of the link for both directions with all ranks copying; the choice of "
    "cells, one from each row, was made knowing the table",
    "counted: 16 h saved numbers a token and block; recomputing tokens runs all of a block's "
    "token-wise operations; attention's backward has 2.5 times the FLOPs of its forward; head and "
    "loss run at the efficiency of matrix products; the optimiser takes no time",
    "counted: tensor parallelism sends and receives (TP - 1) / TP of a gathered tensor 4 times "
    "forward and 6 times backward, at half of the printed NVLink speed, not hidden; a ring's "
    "copies are hidden as far as attention lasts",
    "assumed: 18 bytes of state a parameter (bf16 parameter, fp32 gradient, fp32 copy, two "
    "moments), split by TP; the optimiser is split further (ZeRO 1) only where that state would "
    "take over half of a device",
    "assumed, chosen so that the borders of the ablation come out: 4 GiB of a device's 79.3 GiB go "
    "to context, collectives and work space; backward of a block holds 2 ffn + 2 TP h + 2 h "
    "numbers a token besides saved tensors; logits are held in bf16 and the loss taken in parts",
    "assumed: the main row's degrees are the fastest of all TP up to 8 and all CP (first row), or "
    "the ablation's wherever they fit (second row); for models other than 7B the fixed degrees are "
    "TP 8 and the rest CP",
    "assumed: memory is planned without gaps, and alpha is the eighth that gives the least step",
)


def contradictions(fit: Fit) -> list[str]:
    """Printed or derived facts that cannot both hold, with both values."""
    return [
        f"link: 32 GB/s is printed; the cells of swap-all take {fit.link_bytes_per_s / 1e9:.1f} "
        "GB/s a rank each way, and other cells 8.3 to 10",
        "host: 2 TB (1.82 TiB) a node are printed; swap-all at 384K needs "
        f"{_host_tib(fit, 384, 8):.2f} TiB and is printed as out of host memory",
        *_alpha_contradictions(fit),
        _logits(fit),
        "degrees, 64K: 52.34 in the main table and 47.99 in the ablation, both for MEMO and 7B: "
        "other parallel degrees, which are not printed; from 128K on both print the same",
    ]


def _alpha_contradictions(fit: Fit) -> list[str]:
    """Cells out of host memory although less is needed than the 0.96 TiB seen in use."""
    found = []
    usable_bytes = fit.hardware.host_usable_bytes
    for thousands, cells in ALPHA.items():
        for eighths, printed in enumerate(cells):
            need_tib = _host_tib(fit, thousands, eighths)
            if printed == OUT_OF_HOST and need_tib * TIB < usable_bytes:
                found.append(
                    f"alpha {eighths / 8} at {thousands}K needs {need_tib:.4f} TiB of host memory "
                    f"and is printed as out of it; 0.96 TiB were in use elsewhere, and alpha 1 at "
                    f"256K, which ran, needs {_host_tib(fit, 256, 8):.4f} TiB"
                )
    return found


def _host_tib(fit: Fit, thousands: int, eighths: int) -> float:
    """Host memory of a node, in TiB, at that alpha."""
    job = fit.job("7b", thousands * K, ABLATION_PARALLEL)
    policies = fixed_policies(Strategy.MEMO_PAPER, thousands * K, job.workload.model.num_blocks)
    policy = next(p for p in policies if p.blocks[0].swap_tiles == eighths)
    told = predict(job.profile(Strategy.MEMO_PAPER), policy)
    return told.host_peak_bytes * ABLATION_PARALLEL.gpus / TIB


def _logits(fit: Fit) -> str:
    thousands = 896
    job = fit.job("7b", thousands * K, ABLATION_PARALLEL)
    workload = job.workload
    logits_gib = workload.model.vocab * workload.tokens * 4 / workload.parallel.gpus / GIB
    buffers_gib = 2 * _buffer_bytes_per_token(fit) * workload.tokens / GIB
    state_gib, device_gib = workload.state_bytes / GIB, fit.hardware.device_bytes / GIB
    total_gib = logits_gib + buffers_gib + state_gib
    return (
        f"logits: MEMO runs at {thousands}K (TP 4, CP 2); two rounding buffers "
        f"({buffers_gib:.1f} GiB), state ({state_gib:.1f}) and whole fp32 logits "
        f"({logits_gib:.1f}) make {total_gib:.1f} of {device_gib:.1f} GiB, with nothing left for "
        "context and work space: so whole fp32 logits are not assumed"
    )


def _buffer_bytes_per_token(fit: Fit) -> float:
    profile = fit.job("7b", K, ABLATION_PARALLEL).profile(Strategy.MEMO_PAPER)
    return (
        profile.x_bytes_per_token
        + profile.o_bytes_per_token
        + profile.attention_bytes_per_token
        + profile.tile_bytes_per_token
    )
