"""Types of the kernels' module; csrc/kernels says what they compute. No stream: on the host.

dtype is float32, float16 or bfloat16; numbers of tensors are addresses, pitches are in 16 bytes.
"""

from collections.abc import Sequence

CUDA_VERSION: str
ARCHS: str

_Pitches = tuple[int, int, int]

def copy_rows(
    target: int,
    source: int,
    shape: tuple[int, int, int],
    pitches: tuple[int, int, int, int],
    stream: int | None,
    /,
) -> None: ...
def swiglu(
    dtype: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    elements: int,
    stream: int | None,
    /,
) -> None: ...

swiglu_backward = swiglu
gelu_erf = swiglu
gelu_erf_backward = swiglu
gelu_tanh = swiglu
gelu_tanh_backward = swiglu

def rms_norm(
    dtype: str,
    data: Sequence[int],
    shape: tuple[int, int],
    epsilon: float,
    stream: int | None,
    /,
) -> None: ...

rms_norm_backward = rms_norm

def rms_norm_weight_gradient(
    dtype: str,
    data: Sequence[int],
    shape: tuple[int, int],
    band_rows: int,
    stream: int | None,
    /,
) -> None: ...
def rope(
    dtype: str,
    data: Sequence[int],
    shape: tuple[int, int, int, int],
    pitches: tuple[_Pitches, _Pitches],
    table_pitches: tuple[int, int],
    is_backward: bool,
    stream: int | None,
    /,
) -> None: ...
