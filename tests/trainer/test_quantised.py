"""A frozen base in few bits, trained through adapters as QLoRA does: the unwrapped run's losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import TrainingArguments

import memo_train
from memo_train.testing import assert_same_losses
from tests.trainer.tiny import VOCAB_SIZE, arguments, losses, tiny_llama

peft = pytest.importorskip("peft")
ROWS = [{"input_ids": ids, "labels": ids} for ids in torch.arange(120).view(4, 30) % VOCAB_SIZE]
pytestmark = pytest.mark.filterwarnings("ignore")  # what the packages say of themselves


class Int8Linear(nn.Linear):
    """A weight of a byte a number, and a scale a row; what it is made of is not trained."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        scales = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        del self.weight
        self.register_buffer("weight", (plain.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scales.to(x.dtype))


def in_bytes(_: Path) -> Any:
    model = tiny_llama()
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Int8Linear(getattr(layer.mlp, name)))
    return model


def by_torchao(_: Path) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_llama()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def by_bitsandbytes(path: Path, **options: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(path / "base")
    config = transformers.BitsAndBytesConfig(**options)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path / "base", quantization_config=config, device_map="cpu"
    )
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def in_4_bits(path: Path) -> Any:
    dtype = torch.float32
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return by_bitsandbytes(path, load_in_4bit=True, **options)


def in_8_bits(path: Path) -> Any:
    return by_bitsandbytes(path, load_in_8bit=True)


@pytest.mark.parametrize("make", [in_bytes, by_torchao, in_8_bits, in_4_bits])
def test_adapters_of_a_frozen_base_have_the_losses_of_the_unwrapped_run(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Evaluated in between, which packs bitsandbytes' weights where nothing keeps it from that."""
    found = []
    for kind, extra in (
        (transformers.Trainer, {}),
        (memo_train.Trainer, {"memo": memo_train.MemoConfig(alpha=0.5, tile_tokens=8)}),
    ):
        names = ["q_proj", "v_proj"] if make is in_bytes else ["q_proj", "v_proj", "down_proj"]
        model = make(tmp_path)
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=names))
        options = {"max_steps": 4, "learning_rate": 0.05}
        if kind is memo_train.Trainer:
            options |= {"eval_strategy": "steps", "eval_steps": 2}
        args = arguments(TrainingArguments, tmp_path, **options)
        memo_train.reset_stats()
        trainer = kind(model=adapted, args=args, train_dataset=ROWS, eval_dataset=ROWS[:2], **extra)
        found.append(losses(trainer))
    assert_same_losses(found[1], found[0])
    assert found[0][0] - found[0][-1] > 0.01, "the adapters learn nothing"
    assert memo_train.stats().swap_tiles > 0


def test_weights_that_were_packed_for_inference_are_refused(tmp_path: Path) -> None:
    model = in_4_bits(tmp_path).eval()
    with torch.no_grad():
        model(torch.arange(9)[None])
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    if not any(getattr(state, "packing_format_for_cpu", False) for state in states):
        pytest.skip("this CPU has no AVX512-BF16")
    with pytest.raises(memo_train.MemoError, match="has packed its 4-bit weights for inference"):
        memo_train.wrap(model)
