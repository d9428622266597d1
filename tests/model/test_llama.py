"""The project's Llama computes what Hugging Face's does with the same weights."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from memo_planner.errors import InvalidInput
from memo_train.model import Llama, LlamaConfig

# Both sides are fp32 and differ in the order of sums only (fused norm and attention).
RTOL = 1e-5
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "ffn_size": 112,
    "num_blocks": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
}


def own_and_peer(**changes: Any) -> tuple[Llama, nn.Module]:
    """The project's model and a Hugging Face model with the same weights, both in train mode."""
    config = LlamaConfig(**{**SIZES, **changes})
    peer_config = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_blocks,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tie_embeddings,
    )
    torch.manual_seed(7)
    peer = transformers.LlamaForCausalLM(peer_config).train()
    model = Llama(config).train()
    weights = {name.replace(".layers.", ".blocks."): w for name, w in peer.state_dict().items()}
    model.load_state_dict(weights)
    return model, peer


def tokens(rows: int = 2, length: int = 33) -> Tensor:
    """Random token ids [rows, length]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, SIZES["vocab_size"], (rows, length), generator=generator)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Largest difference at most RTOL of the largest value."""
    scale = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=RTOL * scale)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_logits_and_gradients_equal_hugging_face(kv_heads: int, tied: bool) -> None:
    model, peer = own_and_peer(num_kv_heads=kv_heads, tie_embeddings=tied)
    ids = tokens()
    labels = ids.clone()
    labels[:, :5] = -100
    ours, theirs = model(ids, labels=labels), peer(input_ids=ids, labels=labels)
    ours.loss.backward()
    theirs.loss.backward()
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.loss, theirs.loss)
    peer_grads = {n.replace(".layers.", ".blocks."): p.grad for n, p in peer.named_parameters()}
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, peer_grads.pop(name))
    assert not peer_grads


def test_rope_theta_and_positions_equal_hugging_face() -> None:
    model, peer = own_and_peer(rope_theta=500.0)
    ids = tokens()
    positions = torch.stack([torch.arange(33), torch.arange(33) * 3 + 40])
    theirs = peer(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids))
    assert_close(model(ids, position_ids=positions).logits, theirs.logits)
    assert not torch.allclose(model(ids).logits, theirs.logits, atol=1e-3)


def test_number_of_items_divides_the_summed_loss() -> None:
    model, peer = own_and_peer()
    ids = tokens()
    ours = model(ids, labels=ids, num_items_in_batch=torch.tensor(13))
    theirs = peer(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(13))
    assert_close(ours.loss, theirs.loss)


def test_shifted_labels_are_used_as_they_are() -> None:
    model, _ = own_and_peer()
    ids = tokens(length=34)
    shifted = ids[:, 1:].contiguous()
    loss = model(ids[:, :-1], labels=ids[:, :-1], shift_labels=shifted).loss
    logits = model(ids[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), shifted)
    assert_close(loss, expected)


def test_no_labels_no_loss() -> None:
    assert own_and_peer()[0](tokens()).loss is None


def test_a_later_token_never_changes_an_earlier_output() -> None:
    model, _ = own_and_peer()
    ids = tokens()
    changed = ids.clone()
    changed[:, 20] = (changed[:, 20] + 1) % SIZES["vocab_size"]
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


def test_bfloat16_weights_give_bfloat16_logits_and_fp32_loss() -> None:
    model, _ = own_and_peer()
    output = model.bfloat16()(tokens(), labels=tokens())
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_heads": 5}, "hidden_size is 64, must be a multiple of num_heads=5"),
        ({"num_kv_heads": 3}, "num_heads is 4, must be a multiple of num_kv_heads=3"),
        ({"hidden_size": 12, "num_heads": 4}, "head_dim is 3, must be even"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        LlamaConfig(**{**SIZES, **changes})
