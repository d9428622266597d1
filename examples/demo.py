"""One Llama, one memory cap, four ways to train: how long a sequence does each reach?

usage: make demo, or python examples/demo.py [--layers 16 --hidden 128 --activation-mib 64]

The text is the Python standard library's own sources, a token a byte. First every mode looks for
its longest sequence under the same cap. Then all of them take the same steps at a length that all
can hold, and their losses and gradients are compared with plain training's. Last, memo-train trains
at a length that none of the others reaches, in Transformers' Trainer. Files go to runs/demo/.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import transformers
from safetensors.torch import load_file

import memo_train
from benchmarks.job import MIB, MODES, Job
from benchmarks.llama import build_model
from benchmarks.longest_sequence import longest_of
from benchmarks.process import WorkerProcess
from benchmarks.results import mib, print_table
from examples.text import text_batches

COMPARED_STEPS = 3
GIB = 2**30


def compare_steps(job: Job, tokens: int) -> dict[str, dict[str, Any]]:
    """Every mode's gradients of one batch against plain's, then its first steps, at one length."""
    compared = {}
    with TemporaryDirectory() as folder:
        for mode in MODES:
            path = Path(folder, f"{mode}.safetensors")
            with WorkerProcess(replace(job, mode=mode)) as worker:
                worker.ask("gradients", tokens=tokens, path=str(path))
                steps = [
                    worker.ask("step", tokens=tokens, index=index)
                    for index in range(COMPARED_STEPS)
                ]
            compared[mode] = {
                "seconds": min(step["seconds"] for step in steps),
                "activation_peak_bytes": steps[-1]["activation_peak_bytes"],
                "loss": steps[-1]["loss"],
                "gradient_difference": _largest_difference(Path(folder, "plain.safetensors"), path),
            }
    return compared


def train(job: Job, tokens: int, num_steps: int, device_bytes: int, out: Path) -> list[float]:
    """Train under the cap with a progress bar; losses, plan, layout and weights go to out."""
    model = memo_train.wrap(build_model(job), seq_len=tokens, device_gib=device_bytes / GIB)
    rows = [{"input_ids": r[0], "labels": r[0]} for r in text_batches(num_steps, 1, tokens)]
    settings = transformers.TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=1,
        max_steps=num_steps,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to=[],
        dataloader_pin_memory=False,
    )
    trainer = memo_train.Trainer(model=model, args=settings, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    memo_train.save_plan(model, out / "plan.json")
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main() -> None:
    """Search, compare, train, and print the table."""
    options = _parse()
    budget_bytes = round(options.activation_mib * MIB)
    shape = {"layers": options.layers, "hidden": options.hidden}
    job = Job(mode="plain", activation_bytes=budget_bytes, **shape)
    print(
        f"A Llama of {job.layers} blocks, hidden {job.hidden}, in fp32, on the standard library's"
    )
    print(f"sources. Device memory: the model's state and {mib(budget_bytes)} for activations.")
    print("\n1. The longest sequence of each mode under this cap", flush=True)
    longest = {mode: longest_of(replace(job, mode=mode)) for mode in MODES}
    common_tokens = min(found["tokens"] for found in longest.values())
    print(f"\n2. The same steps in every mode at {common_tokens:,} tokens", flush=True)
    compared = compare_steps(job, common_tokens)
    tokens, state_bytes = longest["memo"]["tokens"], longest["memo"]["state_bytes"]
    num_steps = min(20, max(3, int(options.training_seconds / longest["memo"]["seconds"])))
    print(f"\n3. Training at {tokens:,} tokens, {num_steps} steps", flush=True)
    losses = train(job, tokens, num_steps, state_bytes + budget_bytes, options.out)
    _print_table(longest, compared, f"{mib(budget_bytes)} of device memory for activations")
    print(f"\nTrained at {tokens:,} tokens: loss {losses[0]:.3f} -> {losses[-1]:.3f}.")
    print(f"Look at its plan: .venv/bin/memo-plan show {options.out / 'plan.json'}")


def _print_table(
    longest: dict[str, dict[str, Any]], compared: dict[str, dict[str, Any]], title: str
) -> None:
    rows = []
    tokens = longest["memo"]["tokens"]
    for mode, found in longest.items():
        same = compared[mode]
        fate = f"{found['seconds']:.1f} s/step" if found["tokens"] >= tokens else "out of memory"
        figures = [f"{found['tokens']:,}", fate, mib(same["activation_peak_bytes"])]
        figures += [f"{same['seconds']:.2f}", f"{same['loss']:.5f}"]
        rows.append([mode, *figures, f"{same['gradient_difference']:.1e}"])
    at = f"at {min(found['tokens'] for found in longest.values()):,}"
    header = ["mode", "longest tokens", f"at {tokens:,}", f"peak {at}", f"s/step {at}"]
    header += [f"loss {at}, step {COMPARED_STEPS}", "gradient difference"]
    print_table(title, header, rows)


def _largest_difference(plain: Path, other: Path) -> float:
    """The largest difference of any gradient element, over the largest element of plain's."""
    expected, found = load_file(plain), load_file(other)
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    worst = max((found[name] - g).abs().max().item() for name, g in expected.items())
    return worst / scale


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--activation-mib", type=float, default=64)
    parser.add_argument("--training-seconds", type=float, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
