"""Steps of a bf16 model on two threads, with layouts and without; prints what came of them."""

import json

import torch
from torch import nn

import memo_train
from memo_train.device import get_cpu_device
from memo_train.model import Llama, LlamaConfig
from tests.layout.steps import Training, only_report

SIZES = {"hidden_size": 128, "ffn_size": 256, "num_heads": 4, "num_kv_heads": 2}


def losses(*, on: bool) -> tuple[list[float], nn.Module]:
    torch.manual_seed(1)
    model = Llama(LlamaConfig(vocab_size=61, num_blocks=2, **SIZES)).bfloat16()
    memo_train.wrap(model, alpha=0.5, tile_tokens=128)
    memo_train.use_layouts(model, on)
    training = Training(model)
    for _ in range(3):
        training.step(1, 256)
    return training.losses, model


def main() -> None:
    device = get_cpu_device()
    device.start_recording()
    without, _ = losses(on=False)
    threads = set(device.stop_recording()["source"].tolist())
    with_layout, model = losses(on=True)
    report = only_report(model)
    found = {"threads": len(threads), "without": without, "with_layout": with_layout}
    counts = {name: getattr(report, name) for name in ("num_steps", "unplanned", "missing")}
    print(json.dumps(found | counts))


if __name__ == "__main__":
    main()
