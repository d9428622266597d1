"""Blocks whose tokens mix in a module of their own, without an attention call that is caught."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memo_train import attention
from tests.runtime.toy import HEADS, HIDDEN, ToyDecoder


class ProductMixer(nn.Module):
    """Attention as two matrix products and a softmax; returns its weights, too."""

    dropout = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.sink = nn.Parameter(torch.zeros(HEADS, 1, 1))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.qkv(h).chunk(3, dim=-1)
        q, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
        later = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).triu(1)
        scores = (q @ k.mT + self.sink).masked_fill(later, float("-inf"))
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        output: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return output, weights


class RecurrentMixer(nn.Module):
    """A decayed sum over the tokens before, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(HIDDEN, HIDDEN)
        self.decay = nn.Parameter(torch.zeros(HIDDEN))
        self.register_buffer("num_calls", torch.zeros(()))

    def forward(self, h: Tensor, scale: Tensor | None = None) -> Tensor:
        self.num_calls += 1
        state, states = torch.zeros_like(h[:, 0]), []
        for token in self.into(h if scale is None else h * scale[..., None]).unbind(1):
            state = torch.sigmoid(self.decay) * state + token
            states.append(state)
        return torch.stack(states, 1)


class TwiceAttendingMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 4 * HIDDEN)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.qkv(h).chunk(4, dim=-1)
        q, r, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
        output = attention(q, k, v) - 0.5 * attention(r, k, v)
        return output.transpose(1, 2).flatten(2)


class MixerBlock(nn.Module):
    """x + mixer + MLP."""

    make_mixer: Any = RecurrentMixer

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.mixer = self.make_mixer()
        self.mlp = nn.Sequential(
            nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 48), nn.GELU(), nn.Linear(48, HIDDEN)
        )

    def mix(self, x: Tensor, *args: Any) -> Tensor:
        output = self.mixer(self.norm(x), *args)
        return output[0] if isinstance(output, tuple) else output

    def forward(self, x: Tensor, *args: Any) -> Any:
        x = x + self.mix(x, *args)
        output: Tensor = x + self.mlp(x)
        return output


class ProductBlock(MixerBlock):
    make_mixer = ProductMixer


class TwiceAttendingBlock(MixerBlock):
    make_mixer = TwiceAttendingMixer


class ParallelMixerBlock(ProductBlock):
    """Reads after the cut what the mixer was given."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        h = self.norm(x)
        output: Tensor = x + self.mixer(h)[0] + self.mlp(h)
        return output


class PostNormBlock(MixerBlock):
    """The mixer is given the block's own input."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = self.norm(x + self.mixer(x))
        output: Tensor = x + self.mlp(x)
        return output


class ScaledBlock(MixerBlock):
    """The mixer is given a number of each token, [batch, tokens], an argument of the block."""


class ScaledDecoder(ToyDecoder):
    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        scale = torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype).expand(x.shape[:2])
        output: Tensor = block(x, scale)
        return output


class MadeArgumentBlock(MixerBlock):
    """The mixer is given a number of each token that the block makes of its input."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = x + self.mixer(self.norm(x), x.mean(-1).sigmoid())
        output: Tensor = x + self.mlp(x)
        return output


class InnerMixer(nn.Module):
    """A mixer inside of another module, which is token-wise but for it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ProductMixer()
        self.gate = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, h: Tensor) -> Tensor:
        output: Tensor = self.inner(h)[0] * torch.sigmoid(self.gate(h))
        return output


class InnerMixerBlock(MixerBlock):
    make_mixer = InnerMixer


class WeightsBlock(ProductBlock):
    """Returns attention's weights beside y."""

    def forward(self, x: Tensor, *args: Any) -> Any:
        mixed, weights = self.mixer(self.norm(x))
        x = x + mixed
        return x + self.mlp(x), weights


class WeightsDroppingDecoder(ToyDecoder):
    """Lets the second output of its blocks go."""

    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        output: Tensor = block(x)[0]
        return output


class WeightsUsingDecoder(ToyDecoder):
    """Computes with the second output of its blocks."""

    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        y, weights = block(x)
        output: Tensor = y * (1 + weights.square().mean())
        return output


class WeightsPassingDecoder(ToyDecoder):
    """Gives the second output of a block to the next, which does not look at it."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x, weights = self.embed(input_ids), None
        for block in self.blocks:
            x, weights = block(x, weights)
        output: Tensor = self.norm(x)
        return output


class SideBySideBlock(MixerBlock):
    """Two modules mix tokens of the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.second = TwiceAttendingMixer()

    def mix(self, x: Tensor, *args: Any) -> Tensor:
        h = self.norm(x)
        output: Tensor = self.mixer(h) + self.second(h)
        return output


class InARowBlock(SideBySideBlock):
    """A second module mixes what the first one gives."""

    def mix(self, x: Tensor, *args: Any) -> Tensor:
        output: Tensor = self.second(self.mixer(self.norm(x)))
        return output


class CalledTwiceBlock(MixerBlock):
    def mix(self, x: Tensor, *args: Any) -> Tensor:
        output: Tensor = self.mixer(self.mixer(self.norm(x)))
        return output


class NothingElseBlock(nn.Module):
    """Nothing but a norm stands around its mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.mixer = RecurrentMixer()

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        output: Tensor = x + self.mixer(self.norm(x))
        return output
