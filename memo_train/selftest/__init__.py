"""Says what a machine has and proves that memo-train works on it: `python -m memo_train.selftest`.

Every device of the machine goes through the same scenarios: bytes and rows that go to the host and
come back while compute is late, copy speed each way, and gradients of a small Llama whose saved
tensors are swapped, bit for bit against the same step without. On the CPU device the runtime also
runs its own policies, and the planned peak stands beside the measured one. The result is one JSON
object, to be attached to a report of a problem.
"""

from memo_train.selftest.report import run_selftest

__all__ = ["run_selftest"]
