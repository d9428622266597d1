"""Adapters on a frozen model, by PEFT and the trainer: what is saved is the adapters alone.

usage: python examples/lora.py [OUT_DIR], which prints, among its bars,

    trained: 15,360 of ... numbers
    {'loss': '5...', ...}
    ...
    adapter_model.safetensors: ... KiB
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import peft
import transformers

from examples.small import small_llama
from examples.text import text_batches
from memo_train import MemoConfig, Trainer


def main() -> None:
    """Train four steps and save."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model = peft.get_peft_model(small_llama(), config)
    trained, every = model.get_nb_trainable_parameters()
    print(f"trained: {trained:,} of {every:,} numbers")
    rows = [{"input_ids": ids[0], "labels": ids[0]} for ids in text_batches(4, 1, 2048)]
    trainer = Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=1,
            max_steps=4,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        memo=MemoConfig(device_gib=0.25),
    )
    trainer.train()
    trainer.save_model()
    for path in sorted(out.glob("*.safetensors")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
