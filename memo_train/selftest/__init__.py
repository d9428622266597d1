"""Says what a machine has and proves that memo-train works on it: `python -m memo_train.selftest`.

Every device goes through the same scenarios: tensors and tiles that go to the host and come back
while compute or other copies are late; a small Llama's gradients, bit for bit, with its saved
tensors swapped by hooks and by `wrap`; the planned peak of device memory beside the measured one;
the speed of copies; a step's seconds plain and wrapped. The result is one JSON object, to be
attached to a report of a problem (docs/formats.md).

    python -m memo_train.selftest                                  all devices, one after the other
    python -m memo_train.selftest --quick                          only proofs, nothing is timed
    python -m memo_train.selftest --allocator memo                 a GPU's tensors in its own memory
    torchrun --nproc-per-node 2 -m memo_train.selftest             each rank its own GPU, or the CPU
"""

from memo_train.selftest._report import run_selftest

__all__ = ["run_selftest"]
