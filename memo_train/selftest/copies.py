"""Copies of a device: that bytes come back, also when compute is late, and how fast they travel."""

from __future__ import annotations

import statistics

import torch

from memo_train.device.rows import Rows
from memo_train.selftest.place import Place

_NUM_ROUNDS = 20
_TILE_SHAPE = (3, 40, 64)
_SPEED_BYTES = 32 * 2**20
_SPEED_COPIES = 4
_SPEED_REPEATS = 5


def bytes_come_back(place: Place) -> bool:
    """Whether a tensor, and a tile of one, survive the way to the host and back in every round.

    The source is overwritten as soon as compute may, and compute is made late before each copy.
    """
    return all(_whole(place, i) and _tile(place, i) for i in range(_NUM_ROUNDS))


def _numbered(place: Place, shape: tuple[int, ...], index: int) -> torch.Tensor:
    place.delay_compute()
    numel = torch.Size(shape).numel()
    return torch.arange(index, index + numel, device=place.torch_device).reshape(shape)


def _whole(place: Place, index: int) -> bool:
    device, source = place.device, _numbered(place, (4096,), index)
    expected, target = source.clone(), torch.zeros_like(source)
    host = device.host_alloc(source.nbytes)
    device.copy_to_host(host, source.data_ptr(), source.nbytes).wait()
    source.fill_(-1)
    device.copy_to_device(target.data_ptr(), host, target.nbytes).wait()
    device.host_free(host)
    return torch.equal(target, expected)


def _tile(place: Place, index: int) -> bool:
    """Tokens [10, 20) of a [batch, tokens, hidden] tensor."""
    device, whole = place.device, _numbered(place, _TILE_SHAPE, index)
    expected, tile = whole.clone(), whole[:, 10:20]
    row_bytes, pitch = tile[0].nbytes, whole[0].nbytes
    rows = Rows(
        rows=len(tile), row_bytes=row_bytes, device_pitch_bytes=pitch, host_pitch_bytes=row_bytes
    )
    host = device.host_alloc(tile.nbytes)
    device.copy_rows_to_host(host, tile.data_ptr(), rows).wait()
    tile.fill_(-1)
    device.copy_rows_to_device(tile.data_ptr(), host, rows).wait()
    device.host_free(host)
    return torch.equal(whole, expected)


def speeds(place: Place) -> dict[str, float]:
    """Bytes per second each way alone and both together, medians; wall time of whole runs."""
    alone = {
        "d2h_bytes_per_s": _speed(place, to_host=True, to_device=False),
        "h2d_bytes_per_s": _speed(place, to_host=False, to_device=True),
    }
    return alone | {"both_ways_bytes_per_s": _speed(place, to_host=True, to_device=True)}


def _speed(place: Place, *, to_host: bool, to_device: bool) -> float:
    device = place.device
    tensors = [
        torch.zeros(_SPEED_BYTES, dtype=torch.uint8, device=place.torch_device) for _ in range(2)
    ]
    hosts = [device.host_alloc(_SPEED_BYTES) for _ in range(2)]
    seconds = []
    for _ in range(_SPEED_REPEATS):
        place.finish()
        start = device.now()
        for _ in range(_SPEED_COPIES):
            if to_host:
                device.copy_to_host(hosts[0], tensors[0].data_ptr(), _SPEED_BYTES)
            if to_device:
                device.copy_to_device(tensors[1].data_ptr(), hosts[1], _SPEED_BYTES)
        place.finish()
        seconds.append(device.now() - start)
    for host in hosts:
        device.host_free(host)
    return _SPEED_BYTES * _SPEED_COPIES * (to_host + to_device) / statistics.median(seconds)
