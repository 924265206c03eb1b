"""One rank of the processes that tests/test_ranks.py starts: ``ranks_process.py FILE RANK WORLD``."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from mgran_fast import ranks


def network(x: torch.Tensor, weights: list[torch.Tensor], *, shared: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers with a batch norm between them; ``shared`` takes its statistics over all ranks."""
    h = x @ weights[0]
    rows, first, second = torch.tensor(float(len(x)), dtype=x.dtype), h.sum(0), h.square().sum(0)
    if shared:
        rows, first, second = ranks.all_sum(rows), ranks.all_sum(first), ranks.all_sum(second)
    mean = first / rows
    h = (h - mean) * torch.rsqrt(second / rows - mean.square() + 1e-5) * weights[1]
    return h, h @ weights[2]


def loss(h: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Looks across rows in both parts, as triplets do."""
    distances = (h[:, None] - h[None]).square().sum(2)
    same = labels[:, None] == labels[None]
    return torch.nn.functional.cross_entropy(logits, labels) + (distances[same].mean() - distances[~same].mean()).exp()


def data() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [random(5, 4), random(4), random(4, 3)]
    return random(9, 5), torch.arange(9) % 3, [w.mul(0.3).requires_grad_() for w in weights]


def gradients(rank: int, sizes: list[int]) -> None:
    x, labels, weights = data()
    loss(*network(x, weights, shared=False), labels).backward()
    want = [w.grad.clone() for w in weights if w.grad is not None]
    start = sum(sizes[:rank])
    mine = slice(start, start + sizes[rank])
    for w in weights:
        w.grad = None
    h, logits = network(x[mine], weights, shared=True)
    value = loss(ranks.gather(h, sizes), ranks.gather(logits), ranks.gather(labels[mine]))
    value.backward()
    for w, right in zip(weights, want, strict=True):
        assert w.grad is not None
        mean = w.grad.clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(mean / len(sizes), right, rtol=1e-10, atol=1e-12)


def rows(rank: int, sizes: list[int]) -> None:
    total = sum(sizes)
    start = sum(sizes[:rank])
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
        for shape in ((), (3,), (2, 3, 1)):
            whole = (torch.arange(total).view(-1, *(1 for _ in shape)).expand(total, *shape) % 5).to(dtype)
            got = ranks.gather(whole[start : start + sizes[rank]])
            assert got.dtype == dtype
            assert torch.equal(got, whole)
    assert torch.equal(ranks.gather(torch.zeros(0, 2)), torch.zeros(0, 2)), "nobody has rows"
    small = ranks.all_sum(torch.full((3,), 1 + 2**-7, dtype=torch.bfloat16))
    assert torch.equal(small, torch.full((3,), len(sizes) * (1 + 2**-7)).bfloat16())
    assert ranks.exchange([rank, -rank]) == [[r, -r] for r in range(len(sizes))]
    assert ranks.counts(sizes[rank]) == sizes
    assert ranks.gather_objects(f"rank {rank}") == [f"rank {r}" for r in range(len(sizes))]


def one_without_gradient(rank: int, world: int) -> None:
    """A rank whose rows need no gradient goes backward with the others."""
    x = torch.ones(2, 3, requires_grad=rank > 0)
    ranks.gather(x).square().sum().backward()
    if rank:
        assert x.grad is not None
        assert torch.equal(x.grad, torch.full((2, 3), 2.0 * world))


def main() -> None:
    file, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{file}")
    assert (ranks.world(), ranks.rank()) == (world, rank)
    sizes = [3, 6] if world == 2 else [2, 0, 1, 6]
    rows(rank, sizes)
    gradients(rank, sizes)
    one_without_gradient(rank, world)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
