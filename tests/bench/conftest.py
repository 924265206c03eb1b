"""A record such as the suite writes, with figures that were made up."""

from __future__ import annotations

from typing import Any

import pytest

VERSIONS = {"openvino": "2025.3", "faiss-cpu": "1.12.0"}
MACHINE = {
    "processor": "A processor", "cores": 2, "system": "Linux", "python": "3.11.2", "torch": "2.9.0",
    "mgran_fast": "1.0", "commit": "0123abc", "compiler": "GCC 12", "instructions": "avx512",
}  # fmt: skip


def row(
    group: str, name: str, at: dict[str, Any], times: dict[str, float], *, threads: int = 2, spread: float = 0.01,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A race: contestant -> milliseconds, 10 and 90 % ``spread`` away from it."""
    figures = {key: {"median": ms, "10 %": (1 - spread) * ms, "90 %": (1 + spread) * ms} for key, ms in times.items()}
    ratios = {key: ms / times["ours"] for key, ms in times.items() if key != "ours"}
    return {"name": name, "group": group, "at": at, "threads": threads, "rounds": 9, "milliseconds": figures,
            "ratios": ratios, **more}  # fmt: skip


def results() -> list[dict[str, Any]]:
    """A few races of every group."""
    crops = {"people": 64}
    found = [
        row("ops", "crops", {**crops, "kind": "boxes of a frame"}, {"ours": 1.2, "OpenCV": 4.7, "plain torch": 31},
            operations=56.6e6, bytes=2.1e7),
        row("ops", "regions", crops, {"ours": 2.1, "plain torch": 60}, bytes=1.05e7),
        row("ops", "align", crops, {"ours": 13.0, "regions, then inputs": 15, "plain torch": 190}, bytes=1.2e8),
        row("ops", "inputs", crops, {"ours": 11.0, "plain torch": 107, "torch.compile": 26},
            operations=5e7, bytes=1.1e8),
        *(row("ops", f"pooling{more}", {**crops, "precision": precision}, {"ours": t, "plain torch": 8 * t,
              "plain torch, product": 5 * t}, operations=k * 6.7e7, bytes=k * 3.3e7 * size)
          for precision, size in (("float32", 4), ("bfloat16", 2))
          for more, k, t in (("", 1, 6.0 * size), (" and gradient", 2, 16.0 * size))),
        row("MRA", "masks and keypoints", {"people": 8}, {"ours": 160, "ours, joint Mask R-CNN": 2000}),
        row("training", "training step", {"people": 8}, {"ours": 3458, "eager, bfloat16": 4279}),
        row("ranking", "search", {"queries": 32, "gallery": 30000}, {"ours": 11, "NumPy": 21, "FAISS, exact": 15},
            operations=4.9e8, bytes=3.1e7),
    ]  # fmt: skip
    slow = {"four eager float32 calls": 1900.0, "eager": 1400.0}
    for precision, ours, others in (
        ("float32", 610, {**slow, "torch.compile": 1150, "ONNX Runtime": 1050, "OpenVINO": 900}),
        ("bfloat16", 210, {**slow, "eager": 520, "torch.compile": 470, "OpenVINO": 340}),
        ("int8", 120, {"four eager float32 calls": 1900, "ONNX Runtime": 330, "OpenVINO, int8": 190}),
    ):
        for people in (1, 8):
            if people == 8 or precision != "float32":
                times = {name: ms * (people + 0.3) / 8 for name, ms in {"ours": ours, **others}.items()}
                more = {"per second": 1e3 * people / times["ours"], "left out": {"oneDNN": "not on this machine"}}
                found.append(row("MA", "embedding", {"people": people, "precision": precision}, times,
                                 operations=9e9 * people, bytes=4.7e7 + 1.4e5 * people, **more))  # fmt: skip
    ours = {"ours": 30.0, "ours, float32": 80.0, "ours, int8": 22.0, "as published": 420.0}
    rest = {"read JPEG": (3.0, 3.6), "masks and keypoints": (45.0, 12900.0), "regions and inputs": (0.8, 9.0)}
    for name, (fast, published) in rest.items():
        found.append(row("pipeline", name, {"people": 2}, {"ours": fast, "as published": published}))
    found.append(row("pipeline", "network and pooling", {"people": 2}, ours))
    whole = {name: ms + 49.0 for name, ms in ours.items()} | {"as published": 13400.0}
    found.append(row("pipeline", "pictures to embeddings", {"people": 2}, whole))
    for threads, slower in ((2, {}), (1, {"ours": 1.85, "eager": 1.6, "OpenVINO": 1.75})):
        for people in (1, 2, 4, 8, 16, 32, 64, 128, 256)[: 9 if threads == 2 else 5]:
            times = {"ours": 8 + 25 * people, "eager": 30 + 62 * people, "OpenVINO": 14 + 41 * people}
            found.append(row("growth", "embedding, more people", {"people": people, "precision": "bfloat16"},
                             {key: slower.get(key, 1.0) * ms for key, ms in times.items()},
                             threads=threads))  # fmt: skip
    for boxes in (1, 2, 5, 10, 20, 50, 100, 200):
        times = {"ours": 0.01 + 0.019 * boxes, "OpenCV": 0.02 + 0.075 * boxes, "plain torch": 6 + 0.4 * boxes}
        found.append(row("growth", "crops of a frame", {"boxes": boxes}, times))
    for gallery in (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000):
        at, n = {"queries": 32, "gallery": gallery}, gallery / 1000
        found.append(row("growth", "search, larger gallery", at,
                         {"ours": 0.2 + 0.36 * n, "NumPy": 0.4 + 0.7 * n, "FAISS, exact": 0.3 + 0.5 * n}))  # fmt: skip
        found.append(row("growth", "ranking, larger gallery", at,
                         {"ours": 0.1 + 0.08 * n, "NumPy, a query at a time": 1 + 1.8 * n}))  # fmt: skip
    return found


@pytest.fixture
def suite_record() -> dict[str, Any]:
    """Of the whole suite."""
    ceilings = {
        "GFLOP/s, float32": 150.0,
        "GFLOP/s, bfloat16": 480.0,
        "GFLOP/s, int8": 950.0,
        "GB/s, copy": 14.0,
        "GB/s, sum": 17.0,
    }
    values = {"name": "demo", "values": {"Rank-1, %": 87.5, "minutes": 3.4}, "command": "make demo"}
    return {"format": 2, "machine": dict(MACHINE), "versions": dict(VERSIONS), "ceilings": ceilings,
            "results": [*results(), values]}  # fmt: skip
