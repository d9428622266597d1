"""Blocks that are right in plain training and easily wrong by tiles, around the toy's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memo_train import attention
from tests.runtime.toy import HIDDEN, ToyBlock, ToyDecoder


class ByShards(torch.autograd.Function):
    """A module run by shards, whose backward runs theirs and so writes `.grad` itself."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return torch.cat([module(shard) for shard in x.chunk(2, 1)], 1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        found = []
        for shard, d in zip(ctx.saved_tensors[0].chunk(2, 1), dy.chunk(2, 1), strict=True):
            leaf = shard.detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.module(leaf)
            torch.autograd.backward(y, d)
            found.append(leaf.grad)
        return None, torch.cat(found, 1)


class ShardedBlock(ToyBlock):
    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = x + self.attend(x)
        output: Tensor = x + ByShards.apply(self.mlp, x)
        return output


class InjectLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        return dy, torch.full_like(ctx.saved_tensors[0], 0.01)


class InjectedLossBlock(ToyBlock):
    """Adds a loss of the whole sequence, in training only, as DeepSeek's blocks do."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        injected: Tensor = InjectLoss.apply(y, self.mlp(x).mean((0, 1)).square().sum())
        return injected


class LeftLossBlock(ToyBlock):
    """Leaves its loss on an attribute, for the model to add."""

    aux_loss: Tensor | None = None

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        self.aux_loss = 0.1 * self.mlp(x).mean((0, 1)).square().sum()
        return super().forward(x)


class ListedLossBlock(ToyBlock):
    """Leaves its losses in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        self.losses.append(0.1 * self.mlp(x).mean((0, 1)).square().sum())
        return super().forward(x)


class ScaleHeldOnCtx(torch.autograd.Function):
    """x times w, with both held as attributes of ctx instead of being saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.x, ctx.w = x, w
        return x * w

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        return dy * ctx.w, (dy * ctx.x).flatten(0, -2).sum(0)


class InputOnCtxBlock(ToyBlock):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, HIDDEN))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return super().forward(ScaleHeldOnCtx.apply(x, self.scale))


class OutputOnCtxBlock(InputOnCtxBlock):
    """Holds the attention output, right behind the cut."""

    def attend(self, x: Tensor) -> Tensor:
        o = attention(*self.heads(x))
        scaled = ScaleHeldOnCtx.apply(o, self.scale[: o.shape[-1]])
        output: Tensor = self.out(scaled.transpose(1, 2).flatten(2))
        return output

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return ToyBlock.forward(self, x)


class AttentionOnCtx(torch.autograd.Function):
    """Attention without softmax, all of whose inputs are held on ctx."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.qkv = q, k, v
        return (q @ k.mT).tril() @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.qkv
        ds = (do @ v.mT).tril()
        return ds @ k, ds.mT @ q, (q @ k.mT).tril().mT @ do


@contextmanager
def attention_on_ctx() -> Iterator[None]:
    """PyTorch's attention call is `AttentionOnCtx`."""
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, **_: AttentionOnCtx.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


class KeysOnModuleBlock(ToyBlock):
    """Keeps its last keys on an attribute, where a logger may look at them."""

    last_keys: Tensor | None = None

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = super().heads(x)
        KeysOnModuleBlock.last_keys = k
        return q, k, v


class ConjugatedBlock(ToyBlock):
    """Rotates by complex numbers, one of them lazily conjugated; saves negated views, too."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.linspace(0, 1, HIDDEN // 2))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        angle = torch.polar(torch.ones_like(self.turn), self.turn)
        turned = z.conj() * angle * z
        part = turned.conj().imag * turned.conj().imag.tanh()
        return super().forward(x + torch.view_as_real(turned).flatten(-2) + part.repeat(1, 1, 2))


class ExpandedBlock(ToyBlock):
    """Saves tensors that are larger than their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, HIDDEN))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        wide = (self.scale * 1.5).expand_as(x)
        means = x.mean(-1, keepdim=True).expand_as(x)
        return super().forward(x * wide + means * means)


class Tagged(torch.Tensor):
    """A tensor with a number of its own, which its product's backward needs."""

    factor: float

    def detach(self) -> Tagged:
        detached: Tagged = super().detach().as_subclass(Tagged)
        detached.factor = self.factor
        return detached


class TaggedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tagged: Tagged) -> Tensor:
        ctx.save_for_backward(tagged)
        return x * tagged.as_subclass(torch.Tensor) * tagged.factor

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (tagged,) = ctx.saved_tensors
        return dy * tagged.as_subclass(torch.Tensor) * tagged.factor, None


class TaggedBlock(ToyBlock):
    """Saves a tensor of a subclass."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        tagged = torch.full_like(x, 0.5).detach().as_subclass(Tagged)
        tagged.factor = 3.0
        return super().forward(TaggedProduct.apply(x, tagged))


class CountingBlock(ToyBlock):
    """Counts its tokens in a buffer, in a number, and its runs of the mean in another buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("load", torch.zeros(HIDDEN))
        self.num_tokens = 0

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        self.tokens += x.shape[0] * x.shape[1]
        self.load = self.load + (x.detach() > 0).float().sum((0, 1))
        self.num_tokens += x.shape[0] * x.shape[1]
        return super().forward(x)


class AveragingBlock(ToyBlock):
    """Keeps a running mean of its input, which by tiles would be another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(HIDDEN))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        return super().forward(x)


class ClosedOverBlock(ToyBlock):
    """Uses one of its parameters through a function that was made before."""

    def close_over(self) -> None:
        weight = self.mlp[1].weight
        self.mlp[1].forward = lambda x: F.linear(x, weight, self.mlp[1].bias)


class FirstRunBlock(ToyBlock):
    """Gives another result whenever it runs again: no way to run it twice is right."""

    num_runs = 0

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        FirstRunBlock.num_runs += 1
        return super().forward(x * (1 + torch.tensor(FirstRunBlock.num_runs).sin()))


class SharingBlock(ToyBlock):
    """The first block of a step leaves its input's projection in an argument, others use it."""

    def forward(self, x: Tensor, shared: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        if "first" not in shared:
            shared["first"] = self.mlp(x)
            return super().forward(x)
        return super().forward(x + shared["first"])


class SharingDecoder(ToyDecoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x, shared = self.embed(input_ids), dict[str, Tensor]()
        for block in self.blocks:
            x = block(x, shared)
        output: Tensor = self.norm(x)
        return output
