"""A Llama in one page: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Module names inside a block are those of Hugging Face's Llama, so its weights load after renaming
``layers`` to ``blocks``. Attention goes through :func:`memo_train.attention`, where a wrapped model
is cut; nothing reads q, k or v after that call.

Source: Touvron et al., "LLaMA" (arXiv 2302.13971) and "Llama 2" (arXiv 2307.09288).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memo_planner.errors import InvalidInput
from memo_train.runtime import attention

IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama; ``ffn_size`` is the width of the SwiGLU's hidden layer.

    Raises:
        InvalidInput: a size below 1, or heads that do not divide what they share.
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "ffn_size", "num_blocks", "num_heads"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.num_kv_heads >= 1, "num_kv_heads", self.num_kv_heads, "at least 1")
        _require(self.rope_theta > 0, "rope_theta", self.rope_theta, "above 0")
        _require(self.norm_eps > 0, "norm_eps", self.norm_eps, "above 0")
        hidden, heads, kv_heads = self.hidden_size, self.num_heads, self.num_kv_heads
        _require(hidden % heads == 0, "hidden_size", hidden, f"a multiple of num_heads={heads}")
        _require(
            heads % kv_heads == 0, "num_heads", heads, f"a multiple of num_kv_heads={kv_heads}"
        )
        _require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, for RoPE")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


def _require(condition: bool, name: str, value: float, wanted: str) -> None:
    if not condition:
        raise InvalidInput(f"LlamaConfig: {name} is {value}, must be {wanted}")


@dataclass(frozen=True)
class LlamaOutput:
    """A forward's ``loss`` (fp32 scalar, or None) and ``logits`` [batch, tokens, vocab]."""

    loss: Tensor | None
    logits: Tensor


class Attention(nn.Module):
    """Causal self-attention; ``num_kv_heads`` key and value heads are shared by groups of heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, tokens, hidden], cos and sin [1 or batch, tokens, head_dim] -> x's shape."""
        mixed = attention(
            rotate(self._split_heads(self.q_proj(x)), cos, sin),
            rotate(self._split_heads(self.k_proj(x)), cos, sin),
            self._split_heads(self.v_proj(x)),
            causal=True,
        )
        output: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(x.shape))
        return output

    def _split_heads(self, projected: Tensor) -> Tensor:
        """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim], a view."""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, -1, self.head_dim).transpose(1, 2)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> [batch, tokens, hidden]."""
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class Block(nn.Module):
    """One transformer layer: everything but the attention call works on each token alone."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, tokens, hidden], cos and sin [1 or batch, tokens, head_dim] -> x's shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        output: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class Decoder(nn.Module):
    """Embedding, blocks and the last norm."""

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        # Not persistent, as in Hugging Face's Llama: its weights must load.
        self.register_buffer("inv_freq", 1.0 / config.rope_theta**exponents, persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Token ids and positions [batch, tokens] int64 -> last hidden [batch, tokens, hidden]."""
        x: Tensor = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        cos, sin = rotary_tables(position_ids, self.inv_freq, x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        output: Tensor = self.norm(x)
        return output


class Llama(nn.Module):
    """A Llama for causal language modelling, with the calling convention of Hugging Face's."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(_init_weights)
        # After the initialisation, which would draw the shared matrix twice.
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def base_model(self) -> Decoder:
        """The decoder under the language-model head."""
        return self.model

    def get_output_embeddings(self) -> nn.Linear:
        """The language-model head, weight [vocab, hidden]."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> LlamaOutput:
        """Logits, and the loss if labels are given.

        Args:
            input_ids: [batch, tokens] int64.
            labels: [batch, tokens] int64, aligned with input_ids: position t is predicted from the
                tokens before t. -100 leaves a position out.
            position_ids: [batch, tokens] int64 for the rotary embedding; None counts from 0.
            shift_labels: [batch, tokens] int64, already shifted: position t holds what token t must
                predict. Used instead of labels.
            num_items_in_batch: what the summed loss is divided by; None takes the mean over the
                positions that count.
        """
        logits = self.lm_head(self.model(input_ids, position_ids))
        if shift_labels is None and labels is not None:
            # The last position has nothing to predict.
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        if shift_labels is None:
            return LlamaOutput(None, logits)
        return LlamaOutput(_loss(logits, shift_labels, num_items_in_batch), logits)


def rotary_tables(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of positions [batch, tokens] for each head dimension, [batch, tokens, head_dim].

    Source: Su et al., "RoFormer" (arXiv 2104.09864) §3.4.2, in Llama's half-split order.
    """
    # In fp32 whatever the model's dtype: bf16 rounds positions above 256.
    angles = positions[..., None].float() * inv_freq.float()
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to x [batch, heads, tokens, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def _loss(logits: Tensor, targets: Tensor, num_items: Tensor | int | None) -> Tensor:
    # In fp32, as Hugging Face's loss takes its logits.
    flat, targets = logits.float().flatten(0, 1), targets.flatten()
    if num_items is None:
        return F.cross_entropy(flat, targets, ignore_index=IGNORE_INDEX)
    return F.cross_entropy(flat, targets, ignore_index=IGNORE_INDEX, reduction="sum") / num_items


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        # Hugging Face's default `initializer_range`.
        nn.init.normal_(module.weight, std=0.02)
