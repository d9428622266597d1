"""The trainer of Transformers with another import: log lines, checkpoints, evaluation stay its own.

usage: python examples/4_train.py [OUT_DIR], which prints, among its bars,

    {'loss': '5...', ..., 'tokens_per_s': ..., 'alpha': ..., 'epoch': ...}
    ...
    device memory: ...
    {'eval_loss': ...}
    read again: LlamaForCausalLM
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import transformers

from examples.small import small_llama
from examples.text import text_batches
from memo_train import MemoConfig, Trainer


def main() -> None:
    """Train eight steps with a checkpoint after four, evaluate, save, and read it again."""
    out = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    rows = [{"input_ids": ids[0], "labels": ids[0]} for ids in text_batches(20, 1, 1024)]
    trainer = Trainer(
        model=small_llama(),
        args=transformers.TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=2,
            max_steps=8,
            learning_rate=3e-3,
            logging_steps=2,
            save_steps=4,
            use_cpu=True,
            report_to=[],
            dataloader_pin_memory=False,
        ),
        train_dataset=rows[:16],
        eval_dataset=rows[16:],
        memo=MemoConfig(device_gib=0.25, alpha=0.5),
    )
    trainer.train()  # resume_from_checkpoint=True goes on where a killed run was
    print({"eval_loss": trainer.evaluate()["eval_loss"]})
    trainer.save_model()
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    print(f"read again: {type(again).__name__}")


if __name__ == "__main__":
    main()
