"""The readers of rung f, on small recorded texts: neither nvcc nor a GPU is wanted here."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
MODULES = ("compile", "cubin", "minimum", "mutations", "occupancy", "table")

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function _ZN5mgran4cuda5labelIhEEvPKhi:
  REG:45 STACK:0 SHARED:2096 LOCAL:0 CONSTANT[0]:1808 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN5mgran4cuda5resetEPi:
  REG:10 STACK:400 SHARED:0 LOCAL:8 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
	code for sm_90
		Function : _ZN5mgran4cuda5labelIhEEvPKhi
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                    /* 0x00000a00ff017b82 */
                                                                             /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR6][R2.64] ; /* 0x0000000602047981 */
        /*0020*/              @!P0 STG.E.128 desc[UR6][R2.64], R4 ;          /* 0x0000000602047981 */
        /*0030*/                   STG.E.U8 desc[UR6][R2.64], R4 ;           /* 0x0000000602047981 */
        /*0040*/              @UP1 REDG.E.MIN.S32.STRONG.GPU desc[UR6][R2.64], R5 ; /* 0x0000000802005 */
        /*0050*/                   REDUX.MIN.S32 UR8, R0 ;                   /* 0x00000000000873c4 */
        /*0060*/                   NOP ;                                     /* 0x0000000000007918 */
		Function : _ZN5mgran4cuda5resetEPi
        /*0000*/                   ATOMG.E.ADD.STRONG.GPU PT, R7, desc[UR6][R4.64], R7 ; /* 0x07040709a8 */
        /*0010*/                   STL.128 [R29], R4 ;                       /* 0x000000041d007387 */
        /*0020*/                   LDL R0, [R0] ;                            /* 0x0000000000007983 */
        /*0030*/                   ATOMS.ADD RZ, [R0], R1 ;                  /* 0x0000000000007983 */
"""
ELF = """
.nv.info
	<0x1>
	Attribute:	EIATTR_MIN_STACK_SIZE
	Format:	EIFMT_SVAL
	Value:	function: _ZN5mgran4cuda5resetEPi(0xb)	min stack size: 0x190
.nv.info._ZN5mgran4cuda5labelIhEEvPKhi
	<0x1>
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x20 0x8 0x1
	<0x2>
	Attribute:	EIATTR_CBANK_PARAM_SIZE
	Format:	EIFMT_HVAL
	Value:	0x500
.nv.info._ZN5mgran4cuda5resetEPi
	<0x1>
	Attribute:	EIATTR_CUDA_API_VERSION
	Format:	EIFMT_SVAL
	Value:	0x82
"""


@pytest.fixture(scope="module")
def ladder() -> Iterator[dict[str, ModuleType]]:
    """The modules of this folder. They are scripts, which import each other by their plain names."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(HERE))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(HERE))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def entry(**changes: int) -> dict[str, int]:
    good = {"registers": 32, "stack": 0, "local": 0, "shared": 1024, "loads128": 2, "stores128": 4, "red": 1}
    return good | {"atom": 0, "threads": 256} | changes


def test_usage_leaves_out_the_shared_memory_of_the_system(ladder: dict[str, ModuleType]) -> None:
    usage = ladder["cubin"].parse_usage(USAGE, 90)
    assert usage["_ZN5mgran4cuda5labelIhEEvPKhi"] == {"registers": 45, "stack": 0, "shared": 1072}
    assert usage["_ZN5mgran4cuda5resetEPi"] == {"registers": 10, "stack": 408, "shared": 0}
    assert ladder["cubin"].parse_usage(USAGE, 89)["_ZN5mgran4cuda5labelIhEEvPKhi"]["shared"] == 2096


def test_sass_tells_wide_accesses_atomics_and_spills(ladder: dict[str, ModuleType]) -> None:
    cubin = ladder["cubin"]
    label, reset = cubin.parse_sass(SASS).values()
    assert cubin.count_accesses(label) == {"local": 0, "loads128": 1, "stores128": 1, "red": 1, "atom": 0}
    assert cubin.count_accesses(reset) == {"local": 2, "loads128": 0, "stores128": 0, "red": 0, "atom": 1}
    assert cubin.count_accesses(Counter({"LDG.E.ENL2.256": 2}))["loads128"] == 2


def test_threads_come_from_the_launch_bounds(ladder: dict[str, ModuleType]) -> None:
    assert ladder["cubin"].parse_threads(ELF) == {"_ZN5mgran4cuda5labelIhEEvPKhi": 256}


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt on the PATH")
def test_figures_of_a_cubin(ladder: dict[str, ModuleType]) -> None:
    label, reset = ladder["cubin"].read_figures(USAGE, SASS, ELF, 90)
    assert (label.kernel, label.registers, label.threads, label.loads128) == ("label<uint8>", 45, 256, 1)
    assert label.instructions == 6  # without the NOP
    assert (reset.kernel, reset.stack, reset.local, reset.threads) == ("reset", 408, 2, 0)
    with pytest.raises(ladder["cubin"].GateError, match="names the kernels"):
        ladder["cubin"].read_figures(USAGE, SASS.replace("resetEPi", "otherEPi"), ELF, 90)


@pytest.mark.parametrize(
    ("demangled", "label"),
    [
        ("mgran::cuda::find_empty(unsigned char const*, int*, long)", "find_empty"),
        ("void mgran::cuda::f<__nv_bfloat16, unsigned char>(Plan, float (*)(int))", "f<bfloat16, uint8>"),
        ("void (anonymous namespace)::f<float, (int)-3, true>(mgran::A<(int)3>*)", "f<float32, -3, true>"),
        ("void mgran::cuda::f<(mgran::cuda::Kind)1, mgran::cuda::Half>()", "f<1, Half>"),
    ],
)
def test_labels(ladder: dict[str, ModuleType], demangled: str, label: str) -> None:
    assert ladder["cubin"].label(demangled) == label


def test_a_missing_tool_is_one_clear_error(ladder: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(ladder["cubin"].GateError, match="no no-such-nvcc: put it on the PATH or name it in NVCC"):
        ladder["cubin"].find_tool("nvcc")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"local": 2}, "2 accesses to local memory"),
        ({"atom": 1}, "1 atomics with a result"),
        ({"threads": 0}, "__launch_bounds__ is missing"),
        ({"shared": 200 << 10}, "does not fit on a multiprocessor (shared memory)"),
        ({"registers": 255, "threads": 1024}, "does not fit on a multiprocessor (registers)"),
    ],
)
def test_rules(ladder: dict[str, ModuleType], changes: dict[str, int], words: str) -> None:
    rules = ladder["compile"].broken_rules
    assert rules({"a.cu f": {"80": entry()}}) == []
    ((name, arch, text),) = rules({"a.cu f": {"80": entry(**changes)}})
    assert (name, arch) == ("a.cu f", "80")
    assert words in text


def test_limits_only_shrink(ladder: dict[str, ModuleType], tmp_path: Path) -> None:
    gate = ladder["compile"]
    first = {"a.cu f": {"80": entry(), "90": entry()}}
    limits = gate.updated(first, {})
    now = {"a.cu f": {"80": entry(registers=30, stores128=3), "90": entry(loads128=5, threads=128)}}
    worse, better, other = gate.compare(now, limits)
    assert worse == [("a.cu f", "80", "stores128 3, committed 4")]
    assert better == [("a.cu f", "80", "registers 30, committed 32"), ("a.cu f", "90", "loads128 5, committed 2")]
    assert other == [("a.cu f", "90", "threads 128, committed 256")]
    after = gate.updated(now, limits)
    assert after["a.cu f"]["80"] == {**limits["a.cu f"]["80"], "registers": 30}
    assert after["a.cu f"]["90"] == {**limits["a.cu f"]["90"], "loads128": 5, "threads": 128}
    file = tmp_path / "limits.json"
    gate.write_limits({"nvcc": "1"}, after, file)
    assert gate.read_limits(file) == ({"nvcc": "1"}, after)
    assert gate.read_limits(tmp_path / "none.json") == ({}, {})


def test_new_and_gone_kernels_are_told(ladder: dict[str, ModuleType]) -> None:
    gate = ladder["compile"]
    new, gone = gate.unlisted({"a.cu f": {"80": entry(), "90": entry()}}, {"a.cu f": {"80": {}}, "a.cu g": {"80": {}}})
    assert new == [("a.cu f", "90", "new")]
    assert gone == [("a.cu g", "80", "gone")]
    assert gate.grouped([*new, ("a.cu f", "120", "new")]) == ["a.cu f sm_90/120: new"]


def test_another_compiler_is_not_compared(ladder: dict[str, ModuleType]) -> None:
    kernels = {"a.cu f": {"80": entry()}, "pooling.py pool": {"80": entry()}}
    made = {"nvcc": "13.0.88", "triton": "3.8.0"}
    assert list(ladder["compile"].same_compiler(kernels, made, {**made, "triton": "3.9.0"})) == ["a.cu f"]


def test_triton_kernels_that_were_compiled_twice_count_at_their_worst(ladder: dict[str, ModuleType]) -> None:
    row: dict[str, Any] = {"kernel": "pool", "arch": 80, "dtype": "float16", "mode": "mean", "registers": 40}
    row |= {"stack": 0, "spill_accesses": 0, "shared_bytes": 512, "ld128": 4, "st128": 1, "red": 0, "atom": 0}
    rows = [row | {"threads": 128}, row | {"threads": 128, "registers": 44, "ld128": 2}]
    merged = ladder["compile"].merge_triton(rows)
    assert list(merged) == ["pooling.py pool<mean, float16>"]
    assert merged["pooling.py pool<mean, float16>"]["80"]["registers"] == 44
    assert merged["pooling.py pool<mean, float16>"]["80"]["loads128"] == 2


# Known answers: what CUDA's cuda_occupancy.h gives.
@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "limit"),
    [
        (80, 128, 80, 64, 6, "registers"),
        (86, 128, 80, 64, 6, "registers"),
        (90, 256, 32, 0, 8, "threads"),
        (90, 32, 16, 0, 32, "blocks"),
        (80, 256, 32, 40 << 10, 4, "shared memory"),
        (75, 1024, 65, 0, 0, "registers"),
        (120, 256, 64, 100 << 10, 0, "shared memory"),
    ],
)
def test_occupancy(
    ladder: dict[str, ModuleType], arch: int, threads: int, registers: int, shared: int, blocks: int, limit: str
) -> None:
    occupancy = ladder["occupancy"]
    held = occupancy.resident(occupancy.BY_ARCH[arch], threads, registers, shared)
    assert (held.blocks, held.limit) == (blocks, limit)
    assert held.occupancy == blocks * -(-threads // 32) / (occupancy.BY_ARCH[arch].threads // 32)


def test_occupancy_equals_cudas_header(ladder: dict[str, ModuleType]) -> None:
    occupancy = ladder["occupancy"]
    if occupancy.header_folder() is None or shutil.which("c++") is None:
        pytest.skip("no cuda_occupancy.h or no C++ compiler")
    questions = [
        (device, threads, registers, shared)
        for device in occupancy.DEVICES
        for threads in (1, 32, 96, 128, 160, 256, 512, 1000, 1024)
        for registers in (0, 16, 31, 32, 33, 48, 64, 65, 96, 128, 168, 255)
        for shared in (0, 1, 1024, 8192, 16000, 49152, 65536, 101376, 101377, 166912, 232448, 232449)
    ]
    answers = occupancy.header_blocks(questions)
    assert [occupancy.resident(*question).blocks for question in questions] == answers


def test_formulas_and_simulated_cases_are_compared(ladder: dict[str, ModuleType]) -> None:
    minimum = ladder["minimum"]
    case = "2 people of 256 x 128, float32"
    counts = {"inputs.cu emit_inputs<float32>": {case: {"minimum": 2 * 256 * 128 * (4 + 48)}}}
    assert minimum.disagreements(counts) == []
    assert minimum.scale_of("inputs.cu emit_inputs<float32>", case) == 32
    assert minimum.variant(case) == "float32"
    counts["inputs.cu emit_inputs<float32>"][case]["minimum"] = float("nan")
    assert len(minimum.disagreements(counts)) == 1
    pooled = "[8, 256, 16, 8], maps of 256 x 128"
    assert minimum.scale_of("pooling.py pool<mean, float32>", pooled) == 32 * 8
    assert minimum.scale_of("pooling.py share", pooled) == 32
    with pytest.raises(ladder["cubin"].GateError, match="does not tell its size"):
        minimum.size_of("a small case")


def test_the_committed_files_agree(ladder: dict[str, ModuleType]) -> None:
    """docs/kernels.md is what table.py makes of limits.json and bytes.json."""
    assert ladder["table"].check() == []
    compilers, kernels = ladder["compile"].read_limits()
    assert set(compilers) == {"nvcc", "triton"}
    assert all(set(figures) == set(ladder["compile"].KEPT) for archs in kernels.values() for figures in archs.values())
    assert json.loads((HERE / "limits.json").read_text())["kernels"]
