#!/usr/bin/env bash
# torch 2.13.0: FSDP2 (`fully_shard`) in one process never gathers, and FSDP1 in one process never shards.
#
# Guess: a test of what FSDP2 does to weights (packed 4-bit bytes, NaN patterns, dtypes) can run in one process: with one shard,
#        `unshard` makes the same copies as with several, into the same buffers.
# Seen:  With one process no all-gather runs, and each weight is copied by `copy_` alone. With two, shards go through
#        `_foreach_copy_` into the buffer of the gather, and through `split_with_sizes_copy` out of it. So a test in one process
#        passes whatever these do to the bytes; two processes, which may share a device with gloo, are the least that shows it.
#        FSDP1 says that it switches to NO_SHARD with one process; FSDP2 says nothing.
# Fails if that changes. Run: bash findings/fsdp2-one-process-gathers-nothing.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.profiler import profile


def look(rank, processes, folder):
    dist.init_process_group("gloo", rank=rank, world_size=processes, init_method=f"file://{folder}/store-{processes}")
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(2)))
    fully_shard(model, mesh=init_device_mesh("cpu", (processes,)))
    with profile() as profiled:
        model.unshard()
    seen = {event.key for event in profiled.key_averages()}
    copies = [name for name in ("copy_", "_foreach_copy_", "split_with_sizes_copy") if f"aten::{name}" in seen]
    gathers = any("allgather" in name for name in seen)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        FullyShardedDataParallel(torch.nn.Linear(8, 8), device_id=torch.device("cpu"))
    told = any("NO_SHARD" in str(warning.message) for warning in said)
    if rank == 0:
        print(f"{processes}: gathers {gathers}, copies by {' '.join(copies)}; FSDP1 says NO_SHARD {told}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    for processes in (1, 2):
        torch.multiprocessing.spawn(look, (processes, sys.argv[1]), nprocs=processes)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" 2> "$folder/errors" | tee "$folder/seen" || { cat "$folder/errors"; exit 1; }
diff "$folder/seen" - <<'SEEN'
1: gathers False, copies by copy_; FSDP1 says NO_SHARD True
2: gathers True, copies by copy_ _foreach_copy_ split_with_sizes_copy; FSDP1 says NO_SHARD False
SEEN
echo "as seen"
