"""The rows as they were published, and their settings."""

from __future__ import annotations

import pytest
import yaml

from mgran_fast.data.records import MARKET, SINGLE_GALLERY_SHOT
from mgran_fast.data.sets import SETS
from mgran_fast.errors import DataError
from mgran_fast.metrics.protocols import QUERIES
from mgran_fast.reproduce.rows import CONFIGS, ROWS, Row, find
from mgran_fast.train.config import TrainConfig

#: As printed, in percent.
PUBLISHED = {
    "market1501-single": {"rank1": 88.91, "map": 78.03},
    "market1501-multiple": {"rank1": 90.07, "map": 81.30},
    "dukemtmc-reid": {"rank1": 78.12, "map": 63.57},
    "cuhk03-labeled": {"rank1": 93.02, "rank5": 98.94},
    "cuhk03-detected": {"rank1": 90.67, "rank5": 98.21},
    "cuhk03-labeled-part": {"rank1": 91.83, "rank5": 97.41},
    "cuhk03-detected-part": {"rank1": 89.35, "rank5": 96.75},
}
#: What may be left to the machine.
FREE = {"workers"}

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))


def test_published_figures() -> None:
    found = {name: {key: round(100 * value, 4) for key, value in row.published.items()} for name, row in ROWS.items()}
    assert found == PUBLISHED


@every_row
def test_a_row_is_of_a_data_set_that_can_be_read(row: Row) -> None:
    info = SETS[row.dataset]
    assert row.queries in QUERIES
    assert (row.variant or "") in info.variants
    if row.splits:
        assert info.splits is not None
        assert (min(row.splits), max(row.splits), len(row.splits)) == (*info.splits, 20)
    # Without a ranking of all of the gallery there is no mAP.
    assert info.protocol == (MARKET if "map" in row.published else SINGLE_GALLERY_SHOT)


@every_row
def test_a_file_says_everything_that_the_result_depends_on(row: Row) -> None:
    values = yaml.safe_load(row.file.read_text())
    assert set(values) == set(TrainConfig.kinds()) - FREE
    config = row.settings()
    assert config == TrainConfig.from_yaml(row.file)
    assert (config.size, config.trunk, config.shape, config.scale) == ((256, 128), "resnet50", "full", 1 / 256)
    assert config.warmup * config.epochs == pytest.approx(10)


def test_the_ablation_of_part_and_region_level_differs_in_the_layout_alone() -> None:
    for variant in ("labeled", "detected"):
        region, part = ROWS[f"cuhk03-{variant}"], ROWS[f"cuhk03-{variant}-part"]
        assert (region.settings().layout, part.settings().layout) == ("region", "part")
        assert region.settings(layout="part") == part.settings()
        assert region.variant == part.variant == variant


def test_single_and_multiple_queries_share_a_training() -> None:
    assert ROWS["market1501-single"].training == ROWS["market1501-multiple"].training
    others = [row.training for row in ROWS.values() if row.dataset != "market1501"]
    assert len(set(others)) == len(others)


def test_every_file_is_of_use() -> None:
    assert {path.name for path in CONFIGS.iterdir()} == {row.config for row in ROWS.values()} | {"ablation-small.yaml"}


def test_settings_may_be_others() -> None:
    row = ROWS["dukemtmc-reid"]
    assert row.settings(epochs=80, seed=3) == TrainConfig.from_yaml(row.file, epochs=80, seed=3)
    with pytest.raises(DataError, match="epochs must be at least 1, not 0"):
        row.settings(epochs=0)


def test_an_unknown_row_is_one_line() -> None:
    assert find("CUHK03-Labeled") is ROWS["cuhk03-labeled"]
    with pytest.raises(DataError, match="no row is called 'market-single'; the nearest is 'market1501-single'"):
        find("market-single")
    with pytest.raises(DataError, match="no row is called 'x'; there are market1501-single, market1501-multiple"):
        find("x")
