"""What other allocators make of a recorded step: simulators by published rules, and one measured.

The figures of GPU allocators come from these simulators, not from a GPU.
"""
