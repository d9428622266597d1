"""Two processes share every sequence, each with half of its tokens; or take other rows (data).

usage: torchrun --nproc-per-node 2 examples/two_ranks.py [data], which prints

    2 ranks: loss 5.5...
    2 ranks: loss ...
    2 ranks: loss ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import memo_train
from examples.small import small_llama
from examples.text import text_batches

TOKENS, STEPS = 2048, 3


def main() -> None:
    """Train three steps; with gloo on CPUs."""
    dist.init_process_group("gloo")
    num_ranks = dist.get_world_size()
    mesh = init_device_mesh("cpu", (num_ranks,), mesh_dim_names=("sp",))
    by_data = "data" in sys.argv[1:]
    model = memo_train.wrap(small_llama(), mesh=None if by_data else mesh)
    # Takes the mean of the ranks' gradients.
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=3e-3)
    for ids in text_batches(STEPS, rows=num_ranks, tokens=TOKENS):
        if by_data:
            rows = ids[dist.get_rank() :: num_ranks]
            batch = {"input_ids": rows, "labels": rows}
        else:
            batch = memo_train.shard_batch({"input_ids": ids, "labels": ids}, mesh)
        loss = parallel(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        shown = loss.detach().clone()
        dist.all_reduce(shown)
        if dist.get_rank() == 0:
            print(f"{num_ranks} ranks: loss {shown.item() / num_ranks:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
