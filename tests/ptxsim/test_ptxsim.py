"""The PTX simulator as a machine: branches, barriers, memories, counts, and its reports of errors."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ptxsim.parser import parse
from ptxsim.snippets import STORE, kernel, run
from ptxsim.values import PtxError


def same(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype
    assert (got == want).all(), (got[got != want][:5], want[got != want][:5])


def test_divergent_branches_and_loops() -> None:
    body = """
    and.b32 %r1, %r0, 7;
    mov.b32 %r9, 0;
$again:
    setp.eq.s32 %p1, %r1, 0;
    @%p1 bra $done;
    add.s32 %r9, %r9, %r1;
    sub.s32 %r1, %r1, 1;
    bra.uni $again;
$done:
    setp.lt.u32 %p2, %r0, 5;
    @!%p2 bra $end;
    add.s32 %r9, %r9, 1000;
$end:
"""
    out = np.zeros(64, np.uint32)
    run(kernel(body + STORE, 1), (out,), 64)
    n = np.arange(64) % 8
    same(out, (n * (n + 1) // 2 + 1000 * (np.arange(64) < 5)).astype(np.uint32))


SHARED = """
    .shared .align 4 .b8 tile[256];
    shl.b32 %r1, %r0, 2;
    mov.b32 %r2, tile;
    add.s32 %r2, %r2, %r1;
"""


def test_shared_memory_barriers_and_poison() -> None:
    body = (
        SHARED
        + """
    st.shared.b32 [%r2], %r0;
    bar.sync 0;
    ld.shared.b32 %r9, [tile+124];
    sub.s32 %r9, %r9, %r0;
"""
    )
    out = np.zeros(64, np.int32)
    run(kernel(body + STORE, 1), (out,), 64)
    same(out, (31 - np.arange(64)).astype(np.int32))
    run(kernel(SHARED + "    ld.shared.b32 %r9, [%r2];\n" + STORE, 1), (out,), 64)
    assert (out == -1).all()


def test_barrier_reductions_shuffles_and_votes() -> None:
    body = """
    setp.lt.u32 %p1, %r0, 40;
    bar.red.popc.u32 %r1, 0, %p1;
    bar.red.and.pred %p2, 0, %p1;
    selp.b32 %r2, 100, 200, %p2;
    vote.sync.ballot.b32 %r3, %p1, -1;
    popc.b32 %r3, %r3;
    shfl.sync.bfly.b32 %r4, %r0, 1, 31, -1;
    shfl.sync.down.b32 %r5|%p3, %r0, 3, 31, -1;
    redux.sync.max.u32 %r6, %r0, -1;
    mad.lo.s32 %r9, %r1, 1000000, %r2;
    mad.lo.s32 %r9, %r3, 10000, %r9;
    xor.b32 %r4, %r4, %r0;
    add.s32 %r9, %r9, %r4;
    sub.s32 %r5, %r5, %r0;
    add.s32 %r9, %r9, %r5;
    add.s32 %r9, %r9, %r6;
"""
    out = np.zeros(64, np.int32)
    run(kernel(body + STORE, 1), (out,), 64)
    thread = np.arange(64)
    votes, down, largest = np.where(thread < 32, 32, 8), np.where(thread % 32 < 29, 3, 0), np.where(thread < 32, 31, 63)
    same(out, (40 * 1000000 + 200 + votes * 10000 + 1 + down + largest).astype(np.int32))


def test_atomics() -> None:
    body = """
    red.global.add.u32 [%d0], 2;
    atom.global.max.s32 %r1, [%d0+4], %r0;
    cvt.rn.f32.u32 %r3, %r0;
    atom.global.add.f32 %r4, [%d0+8], %r3;
    atom.global.add.u32 %r9, [%d0+12], 1;
    mul.wide.u32 %d10, %r9, 4;
    add.s64 %d11, %d1, %d10;
    st.global.b32 [%d11], %r0;
"""
    cells, seen = np.array([0, 0xFFFFFFFF, 0, 0], np.uint32), np.full(128, 9999, np.uint32)
    run(kernel(body, 2), (cells, seen), 64, blocks=2)
    assert cells.view(np.int32)[:2].tolist() == [256, 63]
    assert cells.view(np.float32)[2] == 2 * 63 * 32
    assert sorted(seen.tolist()) == sorted([*range(64), *range(64)])


def test_local_memory_generic_addresses_and_vectors() -> None:
    body = """
    .local .align 16 .b8 depot[32];
    mov.b64 %d20, depot;
    cvta.local.u64 %d21, %d20;
    st.local.v4.b32 [%d20], {%r0, 7, 8, 9};
    ld.v2.b32 {%r4, %r5}, [%d21+8];
    shr.u32 %r6, %r0, 1;
    cvt.u16.u32 %h1, %r6;
    mov.b32 %r7, {%h1, %h1};
    mov.b32 {%h2, %h3}, %r7;
    cvt.u32.u16 %r7, %h3;
    ld.local.b32 %r8, [depot];
    mad.lo.s32 %r9, %r4, 1000, %r5;
    mad.lo.s32 %r9, %r7, 10000, %r9;
    add.s32 %r9, %r9, %r8;
"""
    out = np.zeros(32, np.int32)
    run(kernel(body + STORE, 1), (out,), 32)
    thread = np.arange(32)
    same(out, (8000 + 9 + thread // 2 * 10000 + thread).astype(np.int32))


def test_matrices_through_shared_memory() -> None:
    """A matrix stored in rows and loaded transposed: thread t holds the pair (t / 4, 2 (t % 4)) of what it loads."""
    body = """
    .shared .align 16 .b8 tile[128];
    mul.lo.s32 %r1, %r0, 2;
    cvt.u16.u32 %h1, %r1;
    add.s32 %r1, %r1, 1;
    cvt.u16.u32 %h2, %r1;
    mov.b32 %r1, {%h1, %h2};
    and.b32 %r2, %r0, 7;
    shl.b32 %r2, %r2, 4;
    mov.b32 %r3, tile;
    add.s32 %r3, %r3, %r2;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r1};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r9}, [%r3];
"""
    out = np.zeros(32, np.uint32)
    run(kernel(body + STORE, 1), (out,), 32)
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8)
    same(out, np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint32))


def test_statistics() -> None:
    far = """
    mul.wide.u32 %d10, %r0, 64;
    add.s64 %d11, %d0, %d10;
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d11];
"""
    out = np.zeros(64 * 16 + 64, np.uint32)
    aligned = out[(-out.ctypes.data % 256) // 4 :][: 64 * 16]
    near = run(kernel(STORE, 1), (aligned,), 64)
    assert (near.total().bytes, near.total().sectors, near.total().requests) == (256, 8, 2)
    apart = run(kernel(far, 1), (aligned,), 64)
    assert (apart.total().bytes, apart.total().sectors) == (1024, 64)
    assert apart.total().efficiency == 0.5
    conflict = run(
        kernel(SHARED.replace("%r0, 2", "%r0, 7").replace("256", "4096") + "ld.shared.b32 %r3, [%r2];", 1),
        (aligned,),
        32,
    )
    assert list(conflict.shared.values()) == [[1, 32]]


WRONG = {
    "out of bounds: 4-byte access 128 bytes from the start of 'p0' .128 bytes.; block 0 thread 32, source line": STORE,
    "misaligned: 4-byte access": STORE.replace("[%d11]", "[%d11+2]"),
    "race: a read of shared memory at 124 and a write by another warp": SHARED
    + "st.shared.b32 [%r2], %r0; ld.shared.b32 %r9, [tile+124];",
    "race: a write of shared memory at 0 and a write by another warp": SHARED + "st.shared.b32 [tile], %r0;",
    "race: a write of shared memory at 0 and a read by another warp": SHARED
    + "ld.shared.b32 %r9, [tile]; st.shared.b32 [tile], 3;",
    "race: a read of shared memory at 0 and a atomic update": SHARED
    + "atom.shared.add.u32 %r9, [tile], 1; ld.shared.b32 %r9, [tile];",
    "out of bounds: 4-byte access to shared memory at 256 of 256": SHARED + "st.shared.b32 [%r2+4], %r0;",
    "threads of block 0 have returned": "setp.lt.u32 %p1, %r0, 9; @%p1 ret; bar.sync 0;",
    "block 0 waits at different ones": "setp.lt.u32 %p1, %r0, 9; @%p1 bra $a; bar.sync 0; ret;\n$a: bar.sync 0;",
    "the mask names 0xffffffff": "setp.lt.u32 %p1, %r0, 9; @%p1 shfl.sync.bfly.b32 %r9, %r0, 1, 31, -1;",
    "division by zero": "div.s32 %r9, %r0, %r0;",
    "trap; block 0 thread 0": "trap;",
}


@pytest.mark.parametrize("words", WRONG)
def test_reports(words: str) -> None:
    out = np.zeros(32, np.uint32)
    with pytest.raises(PtxError, match=words.replace("[", r"\[")):
        run(kernel(WRONG[words], 1), (out,), 64)


def test_the_source_line_is_told() -> None:
    text = kernel("    .loc 1 12 3\n    .loc 2 7 1, function_name $L__info_string0, inlined_at 1 12 3\n" + STORE, 1)
    text += '\n.file 1 "/a/b/kernel.cu"\n.file 2 "/a/c/math.h"\n'
    with pytest.raises(PtxError, match=re.escape("source line math.h:7 inlined at kernel.cu:12")):
        run(text, (np.zeros(31, np.uint32),), 32)


def test_read_only_buffers() -> None:
    with pytest.raises(PtxError, match="a write to 'p0', which is only to be read"):
        run(kernel(STORE, 1), (np.zeros(32, np.uint32),), 32, read_only=True)


def test_two_warps_may_write_the_same_value() -> None:
    run(kernel(SHARED + "st.shared.b32 [tile], 3;", 1), (np.zeros(1, np.uint32),), 64)


# Two warps of 32 threads; each thread copies 4 bytes of p1 to its place of the tile, twice.
COPIES = (
    SHARED
    + """
    mul.wide.u32 %d10, %r0, 4;
    add.s64 %d12, %d1, %d10;
    cp.async.ca.shared.global [%r2], [%d12], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r2+256], [%d12+256], 4;
    cp.async.commit_group;
"""
).replace("tile[256]", "tile[512]")


@pytest.mark.parametrize(
    ("wait", "place", "want"),
    [
        ("cp.async.wait_group 0;", 256, 2),
        ("cp.async.wait_all;", 256, 2),
        ("cp.async.wait_group 1;", 0, 1),
        # Not waited for: what lay there before.
        ("cp.async.wait_group 1;", 256, None),
        ("cp.async.wait_group 2;", 0, None),
    ],
)
def test_asynchronous_copies(wait: str, place: int, want: int | None) -> None:
    source = np.concatenate([np.arange(64), 1000 + np.arange(64)]).astype(np.uint32)
    out = np.zeros(64, np.uint32)
    run(kernel(COPIES + f"    {wait}\n    ld.shared.b32 %r9, [%r2+{place}];\n" + STORE, 2), (out, source), 64)
    same(out, np.full(64, 2**32 - 1, np.uint32) if want is None else source[64 * (want - 1) : 64 * want])


def test_asynchronous_copies_of_nothing_are_zeros() -> None:
    body = (
        SHARED
        + """
    add.s64 %d12, %d1, 4096;
    setp.lt.u32 %p1, %r0, 5;
    selp.b64 %d13, %d1, %d12, %p1;
    selp.b32 %r3, 4, 0, %p1;
    cp.async.ca.shared.global [%r2], [%d13], 4, %r3;
    cp.async.wait_all;
    ld.shared.b32 %r9, [%r2];
"""
    )
    out = np.full(64, 9, np.uint32)
    run(kernel(body + STORE, 2), (out, np.full(1, 7, np.uint32)), 64)
    same(out, np.where(np.arange(64) < 5, 7, 0).astype(np.uint32))


@pytest.mark.parametrize(
    "body",
    [
        # Another warp's copy, waited for by that warp alone.
        COPIES + "    cp.async.wait_all;\n    xor.b32 %r3, %r2, 128;\n    ld.shared.b32 %r9, [%r3];\n",
        # A copy over what another warp may still read.
        SHARED
        + """
    st.shared.b32 [%r2], 0;
    bar.sync 0;
    xor.b32 %r3, %r2, 128;
    ld.shared.b32 %r9, [%r3];
    cp.async.ca.shared.global [%r2], [%d1], 4;
    cp.async.wait_all;
""",
    ],
)
def test_races_of_asynchronous_copies(body: str) -> None:
    with pytest.raises(PtxError, match="race"):
        run(kernel(body + STORE, 2), (np.zeros(64, np.uint32), np.zeros(128, np.uint32)), 64)


@pytest.mark.parametrize(
    "unknown",
    [
        "add.rz.f32 %r1, %r2, %r3;",
        "add.sat.f32 %r1, %r2, %r3;",
        "add.rn.f32.bf16 %r1, %r2, %h3;",
        "fma.rn.f64 %d1, %d2, %d3, %d4;",
        "ld.global.acquire.gpu.b32 %r1, [%d0];",
        "ld.global.v8.b32 {%r1}, [%d0];",
        "st.global.f16 [%d0], %h1;",
        "cvt.rz.f32.f64 %r1, %d1;",
        "cvt.rn.satfinite.bf16.f32 %h1, %r1;",
        "setp.eq.and.f64 %p1, %d1, %d2;",
        "setp.lt.b32 %p1, %r1, %r2;",
        "mov.b128 %d1, %d2;",
        "shfl.bfly.b32 %r1, %r2, 1, 31;",
        "bar.sync 1;",
        "bar.sync 0, 64;",
        "prmt.b32.f4e %r1, %r2, %r3, %r4;",
        "wgmma.fence.sync.aligned;",
        "cp.async.ca.shared.global [%r1], [%d0], 12;",
        "cp.async.mbarrier.arrive.b64 [%r1];",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r4};",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {%r1}, {%r2}, {%r3}, {%r4};",
        "call.uni f;",
        "add.s32 %r1, %r2, %nowhere;",
        "add.s64 %r1, %r2, %r3;",
        "mov.u32 %r1, %clock;",
    ],
)
def test_what_is_not_known_is_refused(unknown: str) -> None:
    """Before anything runs, and with the instruction's text."""
    with pytest.raises(PtxError, match=re.escape(unknown.split(" ")[0].rstrip(";"))):
        run(kernel("    bra $over;\n    " + unknown + "\n$over:", 1), (np.zeros(1, np.uint32),))


@pytest.mark.parametrize("text", [".func f() { ret; }\n", ".global .surfref s;\n.tex .u32 t;\n", ".extern .func g;\n"])
def test_unknown_directives_are_refused(text: str) -> None:
    with pytest.raises(PtxError, match="not simulated"):
        parse(kernel("", 1, head=text))


def test_an_endless_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptxsim.machine.MOST_STEPS", 50)
    with pytest.raises(PtxError, match="does not end"):
        run(kernel("$a:\n    bra $a;", 1), (np.zeros(1, np.uint32),))


@pytest.mark.parametrize(
    ("threads", "blocks", "words"), [(1025, 1, "no such block"), (0, 1, "no such block"), (32, 0, "no such grid")]
)
def test_launch_limits(threads: int, blocks: int, words: str) -> None:
    with pytest.raises(PtxError, match=words):
        run(kernel("", 1), (np.zeros(1, np.uint32),), threads, blocks)


def test_half_filled_warps() -> None:
    out = np.zeros(70, np.uint32)
    run(kernel("    mov.b32 %r9, %r0;\n    bar.sync 0;\n" + STORE, 1), (out,), 70)
    same(out, np.arange(70, dtype=np.uint32))
