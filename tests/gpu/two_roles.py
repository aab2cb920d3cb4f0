"""One role on a shared GPU with PyTorch: caching allocator, a captured graph, NCCL, a denial that PyTorch survives, and then the ledger against NVML."""
import os
import subprocess
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

if dist.is_available() and dist.is_nccl_available():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    dist.all_reduce(data)
    torch.cuda.synchronize()
    dist.destroy_process_group()
else:
    print(f"SKIPPED quota torch NCCL ({role}): this torch has none", flush=True)

OutOfMemoryError = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # torch < 2.5

held = []
try:
    while True:
        held.append(torch.empty(256 << 20, dtype=torch.uint8, device="cuda"))
except OutOfMemoryError:
    pass
assert held, "nothing could be allocated"
assert len(held) * (256 << 20) < total * 1.01, "more than the ceiling"
torch.cuda.synchronize()
# Kernels that the driver loads lazily are not in the ledger yet; a gradient step counts as proven up to this drift.
drift = 64 << 20
compared = subprocess.run([os.environ["CONFORMANCE"], "compare", str(os.getpid()), str(drift)])
assert compared.returncode in (0, 77), "the ledger and the device differ"
held.clear()
torch.cuda.empty_cache()
model(data).sum().item()
print(f"{role}: ok")
