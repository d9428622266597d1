"""Seconds of TRL's SFTTrainer on examples that all have another length, in three modes.

usage: python benchmarks/trl_lengths.py --json out.json [--examples 50 --rounds 2]

It needs TRL: `pip install trl`. Lengths are drawn at random, each once, and are the same for all
modes: TRL's trainer on a Hugging Face Llama as it is, TRL's trainer with the checkpointing that its
configuration turns on, and memo_train.trl's, which turns that off and wraps the model. Batches
hold one example; on one thread. The modes take turns, a whole `train()` at a time, and each round
begins with another one. The making of the trainer, `wrap` with it, is shown beside that.
"""

import argparse
import random
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memo_train.trl
from benchmarks.job import Job
from benchmarks.llama import build_model
from benchmarks.results import ResultRow, append_csv, write_json
from benchmarks.varying_lengths import print_totals, ratio_rows

MODES = ("plain", "checkpoint", "memo")
_VOCAB = 256


def make_trainer(mode: str, shape: dict[str, int], lengths: list[int], folder: Path) -> Any:
    """TRL's trainer on a new model; the examples come in the order of `lengths`."""
    # Not among the dependencies.
    trl, datasets = import_module("trl"), import_module("datasets")
    kind = memo_train.trl.SFTTrainer if mode == "memo" else trl.SFTTrainer

    draw = random.Random(0)
    examples = [{"input_ids": [draw.randrange(3, _VOCAB) for _ in range(n)]} for n in lengths]
    model = build_model(Job(mode=mode, layers=shape["layers"], hidden=shape["hidden"]))
    config = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        max_length=None,
        gradient_checkpointing=mode != "plain",
        bf16=False,
        use_cpu=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )
    return kind(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=make_tokenizer(),
    )


def make_tokenizer() -> Any:
    """A tokenizer of bytes; the examples are token ids, so that it only pads."""
    make: Any = PreTrainedTokenizerFast
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"{n}": n for n in range(3, _VOCAB)}
    return make(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def train_s(mode: str, shape: dict[str, int], lengths: list[int]) -> dict[str, float]:
    """Wall and CPU seconds of a `train()`, seconds to make its trainer, and its mean loss."""
    with tempfile.TemporaryDirectory() as folder:
        made_s = time.perf_counter()
        trainer = make_trainer(mode, shape, lengths, Path(folder))
        made_s = time.perf_counter() - made_s
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        loss = trainer.train().training_loss
        seconds = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    if mode == "memo":
        memo_train.unwrap(trainer.model)
    names = ("s of train()", "CPU s", "s to make the trainer", "losses")
    return dict(zip(names, (*seconds, made_s, float(loss)), strict=True))


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _parse()
    torch.set_num_threads(1)
    shape = {"layers": options.layers, "hidden": options.hidden}
    draw = random.Random(options.seed)
    lengths = draw.sample(range(options.shortest, options.longest + 1), options.examples)
    found: dict[str, dict[str, list[float]]] = {}
    for index in range(options.rounds):
        first = index % len(MODES)
        for mode in (*MODES[first:], *MODES[:first]):
            for name, value in train_s(mode, shape, lengths).items():
                by_mode = found.setdefault(name, {each: [] for each in MODES})
                by_mode[mode].append(value)
    losses, totals = found.pop("losses"), found["s of train()"]
    settings = {
        "trainer": "trl",
        "examples": options.examples,
        "shortest": options.shortest,
        "longest": options.longest,
        "seed": options.seed,
        **shape,
    }
    print_totals(settings, found)
    print("mean losses: " + ", ".join(f"{name} {each[0]:.6f}" for name, each in losses.items()))
    write_json(options.json, {**settings, "lengths": lengths, **found, "losses": losses})
    if options.csv:
        text = ";".join(f"{name}={value}" for name, value in settings.items())
        rows = [ResultRow.of(text, name, "seconds", each) for name, each in totals.items()]
        append_csv("varying_lengths", [*rows, *ratio_rows(text, totals)])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--shortest", type=int, default=200)
    parser.add_argument("--longest", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
