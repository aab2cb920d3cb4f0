"""One role on a shared GPU with PyTorch: caching allocator, a captured graph, NCCL, and a denial that PyTorch survives."""
import os
import sys

import torch

role = sys.argv[1]
torch.cuda.set_device(0)
total = torch.cuda.mem_get_info()[1]
assert total < torch.cuda.get_device_properties(0).total_memory * 1.01
model = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024)).cuda()
data = torch.randn(256, 1024, device="cuda")
for _ in range(3):
    model(data).square().mean().backward()
torch.cuda.synchronize()

graph = torch.cuda.CUDAGraph()
with torch.no_grad(), torch.cuda.graph(graph):
    out = model(data)
graph.replay()
torch.cuda.synchronize()

import torch.distributed as dist

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
store = dist.HashStore()
dist.init_process_group("nccl", store=store, rank=0, world_size=1)
dist.all_reduce(data)
dist.destroy_process_group()

held = []
try:
    while True:
        held.append(torch.empty(256 << 20, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError:
    pass
assert held, "nothing could be allocated"
assert len(held) * (256 << 20) < total * 1.01, "more than the ceiling"
held.clear()
torch.cuda.empty_cache()
model(data).sum().item()
print(f"{role}: ok")
