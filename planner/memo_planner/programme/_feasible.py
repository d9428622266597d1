"""Does any plan fit, and if not, what is short: exact counting, no solver."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.limits import Limits
from memo_planner.policy import BlockPolicy, Place
from memo_planner.profile import POINTS
from memo_planner.programme._cost import BlockShape, Choices, price

_NAMES = {"forward": "block forward", "loss": "loss", "backward": "block backward"}


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """A limit that no plan of this shape respects, and the least bytes that would do."""

    what: str
    where: str
    need_bytes: int
    limit_bytes: int


def alpha_block(shape: BlockShape, alpha: float) -> BlockPolicy:
    """The paper's block: round(alpha * tiles) swapped, the rest recomputed, x and o swapped.

    Source: MEMO §alpha.
    """
    swap = round(alpha * shape.num_tiles)
    return BlockPolicy(
        keep_tiles=0,
        swap_tiles=swap,
        recompute_tiles=shape.num_tiles - swap,
        x=Place.SWAP,
        o=Place.SWAP,
    )


def highest_point(shape: BlockShape) -> tuple[str, int]:
    """The point of the step with most device bytes when nothing is kept, and those bytes."""
    return max(((name, shape.peak_bytes(name)) for name in POINTS), key=lambda pair: pair[1])


def shortage(shape: BlockShape, limits: Limits, alpha: float | None) -> Shortage | None:
    """What is short for every plan of this shape, or None if some plan fits.

    With `alpha` given the plan is fixed; otherwise any tile may be recomputed, and x and o of any
    block may stay on the device, so only their places are in question.
    """
    point, device_bytes = highest_point(shape)
    device_limit, host_limit = limits.device_bytes, limits.host_bytes
    if device_limit is not None and device_bytes > device_limit:
        return _short(_NAMES[point], "device", device_bytes, device_limit)
    if host_limit is None:
        return None
    if alpha is not None:
        host_bytes = _alpha_host_bytes(shape, alpha)
    else:
        host_bytes = _least_host_bytes(shape, device_room(shape, limits))
    host_bytes += shape.planes_bytes
    if host_bytes <= host_limit:
        return None
    return _short("swapped tensors", "host", host_bytes, host_limit)


def _short(what: str, where: str, need_bytes: int, limit_bytes: int) -> Shortage:
    return Shortage(what=what, where=where, need_bytes=need_bytes, limit_bytes=limit_bytes)


def _alpha_host_bytes(shape: BlockShape, alpha: float) -> int:
    prices = price(shape, Choices.of_blocks([alpha_block(shape, alpha)]))
    return int(prices.swapped_bytes[0]) * shape.profile.num_blocks


def sure_blocks(shape: BlockShape, limits: Limits) -> list[BlockPolicy]:
    """Block policies that fit if any do: every tile recomputed, the room filled with x and o."""
    num_x, num_o = _kept_wholes(shape, device_room(shape, limits))
    o_place = Place.RECOMPUTE if shape.attention_again else Place.SWAP
    return [
        BlockPolicy(
            keep_tiles=0,
            swap_tiles=0,
            recompute_tiles=shape.num_tiles,
            x=Place.KEEP if index < num_x else Place.SWAP,
            o=Place.KEEP if index < num_o else o_place,
        )
        for index in range(shape.profile.num_blocks)
    ]


def host_room(shape: BlockShape, limits: Limits) -> int | None:
    """Bytes left on the host for what waits there between forward and backward; None: no limit."""
    return None if limits.host_bytes is None else limits.host_bytes - shape.planes_bytes


def device_room(shape: BlockShape, limits: Limits) -> int | None:
    """Bytes left for kept tensors at the highest point of the step; None means no limit."""
    if limits.device_bytes is None:
        return None
    # Kept bytes are all there when forward ends, so they add to the highest point.
    return limits.device_bytes - highest_point(shape)[1]


def _kept_wholes(shape: BlockShape, room_bytes: int | None) -> tuple[int, int]:
    """How many blocks keep x, and how many keep o, so that the host holds least.

    Where attention may run again, o needs no room anywhere, so x alone counts.
    """
    num_blocks, x_bytes, o_bytes = shape.profile.num_blocks, shape.x_bytes, shape.o_bytes
    if room_bytes is None:
        return num_blocks, num_blocks
    if shape.attention_again:
        return (min(num_blocks, room_bytes // x_bytes) if x_bytes else num_blocks), 0
    best = (0, 0)
    # x and o have other sizes, so taking the larger first may leave more on the host.
    for num_x in range(num_blocks + 1):
        left = room_bytes - num_x * x_bytes
        if left < 0:
            break
        num_o = num_blocks if o_bytes == 0 else min(num_blocks, left // o_bytes)
        best = max(best, (num_x, num_o), key=lambda n: n[0] * x_bytes + n[1] * o_bytes)
    return best


def _least_host_bytes(shape: BlockShape, room_bytes: int | None) -> int:
    num_x, num_o = _kept_wholes(shape, room_bytes)
    num_blocks = shape.profile.num_blocks
    o_bytes = 0 if shape.attention_again else shape.o_bytes
    return (num_blocks - num_x) * shape.x_bytes + (num_blocks - num_o) * o_bytes
