"""`kernels.use`: which modules are taken, when, and that the model still trains.

Numerics: level 4 against plain training (the arithmetic changes), level 3 between policies.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import memo_train
from memo_train import kernels
from memo_train.device import get_cpu_device
from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.kernels._timings import Timing, save_timings, timings_path
from memo_train.testing import assert_as_exact_as_plain, assert_same_bits, float64_step, run_step
from tests.runtime.causal_lms import MODELS, NUM_BLOCKS
from tests.runtime.policies import force

pytestmark = pytest.mark.usefixtures("toolkit")
torch.set_num_threads(1)

BLOCK = {"input_layernorm": "rms_norm", "post_attention_layernorm": "rms_norm"}
LLAMA = BLOCK | {"self_attn": "rope", "mlp": "swiglu"}


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 61, (2, 37), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def no_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def without_caps() -> Iterator[None]:
    yield
    get_cpu_device().set_device_cap(None)
    get_cpu_device().set_host_cap(None)


def of_first_block(done: kernels.UsedKernels) -> dict[str, str]:
    return {
        name.split(".0.")[1]: operation for name, operation in done.used.items() if ".0." in name
    }


@pytest.mark.parametrize(
    ("family", "used"),
    [
        ("own", LLAMA),
        ("llama_gqa", LLAMA),
        ("mistral", LLAMA),
        ("qwen3", LLAMA | {"self_attn.q_norm": "rms_norm", "self_attn.k_norm": "rms_norm"}),
        ("gpt2", {"mlp.act": "gelu_tanh"}),
        ("gpt_neox", {"mlp.act": "gelu"}),
    ],
)
def test_known_modules_are_taken_and_gradients_are_as_exact(
    family: str, used: dict[str, str], ids: Tensor
) -> None:
    model = MODELS[family]()
    batch = {"input_ids": ids, "labels": ids}
    plain, exact = run_step(model, **batch), float64_step(model, **batch)
    done = kernels.use(model, True)
    assert used.items() <= of_first_block(done).items()
    ours = run_step(model, **batch)
    assert not torch.equal(ours.loss, plain.loss) or any(
        not torch.equal(g, plain.gradients[name]) for name, g in ours.gradients.items()
    )
    assert_as_exact_as_plain(ours, plain, exact)
    assert kernels.use(model, False).used == {}
    assert_same_bits(run_step(model, **batch), plain)


@pytest.mark.usefixtures("without_caps")
@pytest.mark.parametrize("family", ["own", "llama_gqa"])
def test_wrapped_model_recomputes_with_kernels(family: str, ids: Tensor) -> None:
    model = MODELS[family]()
    batch = {"input_ids": ids, "labels": ids}
    plain, exact = run_step(model, **batch), float64_step(model, **batch)
    assert len(kernels.use(model, True).used) == 4 * NUM_BLOCKS + 1
    steps = []
    for policy in ("keep", "swap", "recompute"):
        force(memo_train.wrap(model, alpha=0.5), policy, 8)
        with torch.profiler.profile() as profile:
            steps.append(run_step(model, **batch))
        memo_train.unwrap(model)
        calls = {event.key: event.count for event in profile.key_averages()}
        tiles = NUM_BLOCKS * 5
        passes = 2 if policy == "recompute" else 1
        assert calls["memo_train::swiglu"] == passes * tiles
        assert calls["memo_train::swiglu_backward"] == tiles
        assert calls["memo_train::rope"] == 2 * passes * tiles
        assert calls["memo_train::rms_norm"] == 2 * passes * tiles + 1
        assert_as_exact_as_plain(steps[-1], plain, exact)
    assert_same_bits(steps[0], steps[1])
    assert_same_bits(steps[0], steps[2])
    kernels.use(model, False)
    assert_same_bits(run_step(model, **batch), plain)


@pytest.mark.usefixtures("without_caps")
def test_a_tile_saves_less_with_kernels() -> None:
    model = MODELS["llama_gqa"]()
    saved = []
    for which in (False, True):
        kernels.use(model, which)
        plan = memo_train.plan(memo_train.wrap(model, seq_len=64))
        profile = plan.profile
        saved.append(profile.pre_bytes_per_token + profile.post_bytes_per_token)
        memo_train.unwrap(model)
    plain, ours = saved
    assert ours < 0.8 * plain


def test_wrapped_model_is_refused(without_caps: None) -> None:
    model = memo_train.wrap(MODELS["own"]())
    with pytest.raises(UnsupportedModel, match=r"memo_train\.unwrap\(model\), then kernels"):
        kernels.use(model)
    memo_train.unwrap(model)


def test_a_copy_computes_with_its_own_weights(ids: Tensor) -> None:
    model = MODELS["own"]()
    kernels.use(model, True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.blocks[0].mlp.down_proj.weight.zero_()
        other.model.norm.weight.mul_(2)
    before = model(input_ids=ids).logits
    assert not torch.equal(other(input_ids=ids).logits, before)
    kernels.use(other, False)
    assert torch.equal(model(input_ids=ids).logits, before)


class OffsetRMSNorm(nn.RMSNorm):
    """Its weight counts from 1, as in Gemma."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return nn.functional.rms_norm(x, self.weight.shape, 1 + self.weight, self.eps)


class GatedMlp(nn.Module):
    def __init__(self, activation: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 24), nn.Linear(16, 24)
        self.down_proj, self.act_fn = nn.Linear(24, 16), activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        output: Tensor = self.down_proj(self.dropout(mixed))
        return output


class ClampedMlp(GatedMlp):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(
            self.act_fn(self.gate_proj(x)).clamp(max=7) * self.up_proj(x)
        )
        return output


def test_trying_a_module_leaves_its_modes() -> None:
    module = GatedMlp(nn.SiLU(), dropout=0.5)
    module.dropout.eval()
    modes = [each.training for each in module.modules()]
    kernels.use(module, True)
    assert [each.training for each in module.modules()] == modes


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize(
    "module",
    [
        OffsetRMSNorm(16, eps=1e-6),
        GatedMlp(nn.GELU()),
        GatedMlp(nn.SiLU(), dropout=0.5),
        ClampedMlp(nn.SiLU()),
        nn.Sequential(nn.Linear(8, 8), QuickGELU()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_look_alikes_are_left(module: nn.Module) -> None:
    module.eval()
    done = kernels.use(module, True)
    assert "swiglu" not in done.used.values()
    assert "rms_norm" not in done.used.values()
    assert [why for why in done.left.values() if "computes something else" in why]
    assert not any(each.training for each in module.modules())


def test_calls_without_a_kernel_run_as_before() -> None:
    model = nn.Sequential(nn.RMSNorm(8, eps=1e-6), nn.GELU())
    kernels.use(model, True)
    model.double()
    x = torch.randn(3, 8).double()
    assert torch.equal(model[0](x), nn.functional.rms_norm(x, (8,), model[0].weight, 1e-6))
    assert torch.equal(model[1](x), nn.functional.gelu(x))
    assert "no kernel for torch.float64" in kernels.use(model, True).left["1"]


def test_rows_that_no_kernel_takes_are_left() -> None:
    done = kernels.use(nn.Sequential(nn.RMSNorm(6, eps=1e-6)), True)
    assert done.left == {"0": "its rows of 6 numbers are no multiple of 16 bytes"}


def timing(operation: str, dtype: str, kernel_s: float, device: str = "NVIDIA This") -> Timing:
    return Timing(
        device=device, operation=operation, dtype=dtype, sizes={}, kernel_s=kernel_s, torch_s=1.0
    )


def test_auto_goes_by_the_timings_of_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memo_train.kernels._switch.device_name", lambda device: "NVIDIA This")
    model = MODELS["own"]()
    done = kernels.use(model)
    assert done.used == {}
    assert "not timed on NVIDIA This; run python -m memo_train.kernels.benchmark" in str(done)
    save_timings(timings_path(), (timing("swiglu", "float32", 0.5, "NVIDIA Other"),))
    assert kernels.use(model).used == {}
    mine = (
        timing("swiglu", "float32", 0.5),
        timing("rope", "bfloat16", 0.5),
        timing("rms_norm", "float32", 0.5),
        timing("rms_norm", "float32", 1.0),
    )
    save_timings(timings_path(), mine)
    done = kernels.use(model)
    assert of_first_block(done) == {"mlp": "swiglu", "self_attn": "rope"}
    assert "model.norm: as before, torch was faster on NVIDIA This" in str(done)
    entries = json.loads(timings_path().read_text())["timings"]
    assert [entry["device"] for entry in entries] == ["NVIDIA Other", *["NVIDIA This"] * 4]
    with torch.profiler.profile() as profile:
        model(input_ids=torch.ones(1, 4, dtype=torch.long))
    calls = {event.key for event in profile.key_averages()}
    assert "memo_train::swiglu" in calls
    assert "memo_train::rope" not in calls  # only bf16 was faster
    assert kernels.use(model, False).used == {}


def test_auto_takes_nothing_on_the_cpu() -> None:
    save_timings(timings_path(), (timing("swiglu", "float32", 0.5, "cpu"),))
    done = kernels.use(MODELS["own"]())
    assert done.used == {}
    assert "on the CPU the kernels' code is a reference" in str(done)


def test_what_cannot_be_used_is_said() -> None:
    with pytest.raises(InvalidInput, match="kernels must be"):
        kernels.use(MODELS["own"](), "all")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match="no floating-point parameters"):
        kernels.use(nn.GELU())
    timings_path().parent.mkdir()
    timings_path().write_text('{"format": "memo-train kernel timings", "version": 2}')
    with pytest.raises(InvalidInput, match=r"version 1 .*remove it and run"):
        kernels.use(MODELS["own"]())
