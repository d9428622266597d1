"""The shape of a two-dimensional copy."""

from dataclasses import dataclass

from memo_train.device.arguments import positive
from memo_train.device.errors import InvalidDeviceArgument


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The shape of a two-dimensional copy: `rows` runs of `row_bytes` bytes.

    Pitches are the distances in bytes between the starts of neighbouring runs, at least
    `row_bytes`. A tile `x[:, a:b]` of a contiguous `[batch, tokens, hidden]` tensor is `batch` rows
    of `(b - a) * hidden * itemsize` bytes at a pitch of `tokens * hidden * itemsize`.

    Raises:
        InvalidDeviceArgument: a figure is not positive, or rows overlap.
    """

    rows: int
    row_bytes: int
    device_pitch_bytes: int
    host_pitch_bytes: int

    def __post_init__(self) -> None:
        for name in ("rows", "row_bytes", "device_pitch_bytes", "host_pitch_bytes"):
            positive(name, getattr(self, name))
        if min(self.device_pitch_bytes, self.host_pitch_bytes) < self.row_bytes:
            raise InvalidDeviceArgument(
                f"rows of {self.row_bytes} bytes overlap at a pitch of {self.device_pitch_bytes} "
                f"(device) and {self.host_pitch_bytes} (host) bytes"
            )

    @classmethod
    def one(cls, nbytes: int) -> "Rows":
        """The shape of a plain copy of `nbytes` bytes."""
        return cls(rows=1, row_bytes=nbytes, device_pitch_bytes=nbytes, host_pitch_bytes=nbytes)
