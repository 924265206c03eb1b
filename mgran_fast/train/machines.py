"""On how many processes, devices and machines a run trains."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy

from mgran_fast.errors import DataError

STRATEGIES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu")
#: How long processes wait for each other. One of them evaluates between epochs while the others wait.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Machines:
    """Where a run trains. The batch is the same on any number of processes: each takes its share of the people.

    Under torchrun and srun the launcher has started the processes, and "auto" and 1 mean as many as it says. Without
    them the first process of each machine starts the others with its own command line.

    Attributes:
        devices: processes on each machine, one for each GPU, or "auto": all GPUs, or one process on the CPU.
        nodes: machines.
        strategy: "ddp" keeps the whole model on each process, "fsdp" shares its weights out among GPUs; "auto" is ddp
            for several processes.
        accelerator: "gpu", "cpu", or "auto": GPUs where there are any.

    Raises ValueError for a setting out of its range; the message names it.
    """

    devices: int | str = "auto"
    nodes: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        if self.devices != "auto" and (not isinstance(self.devices, int) or self.devices < 1):
            raise ValueError(f"devices must be 1 or more, or auto, not {self.devices!r}")
        if self.nodes < 1:
            raise ValueError(f"nodes must be at least 1, not {self.nodes}")
        for name, known in (("strategy", STRATEGIES), ("accelerator", ACCELERATORS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    @property
    def device(self) -> str:
        """The kind of device: "cuda" or "cpu". Raises DataError for a GPU that is not there."""
        found = torch.cuda.is_available()
        if self.accelerator == "gpu" and not found:
            raise DataError("accelerator gpu: torch sees no CUDA device here; take cpu, or auto")
        return "cuda" if found and self.accelerator != "cpu" else "cpu"

    def shape(self) -> tuple[int, int]:
        """(machines, processes on each). Raises DataError for more GPUs than there are."""
        nodes, each = _launched()
        if not each:
            return self.nodes, self._devices()
        asked = (nodes if self.nodes == 1 else self.nodes, each if self.devices == "auto" else self.devices)
        if asked != (nodes, each):
            raise DataError(
                f"devices {self.devices} on {self.nodes} machines: the launcher started {each} processes on each of"
                f" {nodes}; ask for the same, or leave devices and nodes out"
            )
        return nodes, each

    def _devices(self) -> int:
        gpus = torch.cuda.device_count() if self.device == "cuda" else 0
        if self.devices == "auto":
            return max(gpus, 1)
        if self.device == "cuda" and int(self.devices) > gpus:
            raise DataError(f"devices {self.devices}: this machine has {gpus} GPUs; ask for fewer, or accelerator cpu")
        return int(self.devices)

    def processes(self) -> int:
        """On all machines together."""
        nodes, each = self.shape()
        return nodes * each

    def check(self, people: int) -> None:
        """Raise DataError unless a batch of so many people can be shared out evenly, with this strategy."""
        if people % self.processes():
            raise DataError(
                f"{self.processes()} processes cannot share {people} people a batch evenly: ask for a multiple with"
                " --people, or for other devices"
            )
        if self.strategy == "fsdp" and self.device == "cpu":
            raise DataError("strategy fsdp shares weights out among GPUs, and there is none: take ddp, or auto")

    def options(self) -> dict[str, Any]:
        """Arguments for Lightning's trainer."""
        nodes, each = self.shape()
        chosen: dict[str, Any] = {"accelerator": self.device, "devices": each, "num_nodes": nodes}
        if self.strategy == "fsdp":
            chosen["strategy"] = FSDPStrategy(state_dict_type="full", timeout=PATIENCE)
        elif nodes * each > 1 or self.strategy == "ddp":
            chosen["strategy"] = DDPStrategy(
                # Small numbers travel past the GPU, so that nobody waits for it.
                process_group_backend="cpu:gloo,cuda:nccl" if self.device == "cuda" else "gloo",
                timeout=PATIENCE,
                # Batch norm's statistics are those of all ranks already.
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        return chosen

    def plugins(self) -> list[Any]:
        """Plugins for Lightning's trainer. Raises DataError for tasks that srun was not told to put on each node."""
        # A signal writes a state and ends the run; who starts it again is the cluster's business.
        if not SLURMEnvironment.detect():
            return []
        try:
            return [SLURMEnvironment(auto_requeue=False)]
        except RuntimeError as error:
            raise DataError(f"srun: {error}") from None


def _launched() -> tuple[int, int]:
    """(machines, processes on each) that torchrun or srun started; (0, 0) without them."""
    if TorchElasticEnvironment.detect():
        each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return int(os.environ.get("WORLD_SIZE", "1")) // each, each
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return nodes, int(os.environ.get("SLURM_NTASKS", "1")) // nodes
    return 0, 0


def is_first() -> bool:
    """Whether this is the first process of its run, which writes its files; known before the processes have met."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    if SLURMEnvironment.detect():
        return int(os.environ.get("SLURM_PROCID", "0")) == 0
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(node) == 0
