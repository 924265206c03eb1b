"""CUDA graphs of one function of crops and region maps: all of its launches are one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch

logger = logging.getLogger(__name__)

#: (crops uint8 [n, H, W, 3], region map uint8 [n, H, W]) -> tensors [n, ...]
Function = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]
# Runs before a capture: kernels are compiled and chosen, libraries loaded.
_WARM_UP = 2


class _Captured:
    """One graph, and where it reads and writes."""

    def __init__(self, function: Function, people: int, size: tuple[int, int], device: torch.device, pool: Any) -> None:
        self.crops = torch.zeros((people, *size, 3), dtype=torch.uint8, device=device)
        self.region_map = torch.zeros((people, *size), dtype=torch.uint8, device=device)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                function(self.crops, self.region_map)
        torch.cuda.current_stream(device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            self.results = function(self.crops, self.region_map)


class Graphs:
    """Calls a function by CUDA graphs, one for each size and each number of people that is a power of two.

    A batch is copied into the graph's own memory, filled up to the next power of two; results are copies. Threads and
    streams take turns: graphs share their memory. What cannot be captured runs as it is, and a warning says so once.

    Args:
        function: without host synchronisation; the answer for one person must not depend on the others.
        device: a CUDA device.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
        self.function, self.device = function, device
        self._captured: dict[tuple[int, int, int], _Captured] = {}
        self._lock = Lock()
        self._pool: Any = None
        # When the last replay's results have been copied.
        self._free: torch.cuda.Event | None = None
        self._works = True

    def __call__(self, crops: torch.Tensor, region_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The function's results for crops uint8 [N, H, W, 3] and their map, N at least 1, on any device."""
        people = len(crops)
        with torch.cuda.device(self.device), self._lock:
            captured = self._graph(1 << (people - 1).bit_length(), (crops.shape[1], crops.shape[2]))
            if captured is None:
                return self.function(crops.to(self.device), region_map.to(self.device))
            stream = torch.cuda.current_stream(self.device)
            if self._free is None:
                self._free = torch.cuda.Event()
            else:
                stream.wait_event(self._free)
            captured.crops[:people].copy_(crops)
            captured.region_map[:people].copy_(region_map)
            captured.graph.replay()
            results = tuple(result[:people].clone() for result in captured.results)
            self._free.record(stream)
            return results

    def _graph(self, people: int, size: tuple[int, int]) -> _Captured | None:
        key = (people, *size)
        if key not in self._captured and self._works:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            else:
                # What another stream still reads must not be written by the warm-up.
                torch.cuda.synchronize(self.device)
            try:
                self._captured[key] = _Captured(self.function, people, size, self.device, self._pool)
            except RuntimeError as error:
                self._works = False
                logger.warning("no CUDA graph could be captured, so launches stay apart: %s", error)
        return self._captured.get(key)
