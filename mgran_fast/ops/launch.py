"""How an op's arguments reach the extension: addresses, dtype codes, threads and streams."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

# As in csrc/abi.h.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def launch(module: ModuleType, op: str, device: torch.device, **arguments: Any) -> None:
    """Call the kernel ``op`` of the extension, tensors given as they are (None is a null pointer).

    On the CPU it runs on torch's number of threads; on the GPU it is queued on the current stream of ``device``,
    and nothing waits for it.
    """
    # The tensors stay alive for the length of the call; on the GPU the caching allocator keeps a freed tensor's
    # memory in its stream's order.
    addressed = {
        name: value.data_ptr() if isinstance(value, torch.Tensor) else 0 if value is None else value
        for name, value in arguments.items()
    }
    if device.type == "cpu":
        getattr(module, f"{op}_cpu")(**addressed, threads=torch.get_num_threads())
        return
    with torch.cuda.device(device):
        getattr(module, f"{op}_cuda")(**addressed, stream=torch.cuda.current_stream().cuda_stream)
