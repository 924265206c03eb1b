"""Reading data sets, masks and pictures, and feeding them to training and evaluation."""

from mgran_fast.data.augment import Augment
from mgran_fast.data.cache import Masks, RegionCache, find_masks
from mgran_fast.data.dataset import BadPicture, Batch, CropDataset, Problems, Sample, collate
from mgran_fast.data.market import read_market
from mgran_fast.data.masks import MaskFiles, RegionSource
from mgran_fast.data.pictures import read_mask, read_picture
from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.samplers import BalancedBatchSampler, CameraBatchSampler, PKBatchSampler

__all__ = [
    "Augment",
    "BadPicture",
    "BalancedBatchSampler",
    "Batch",
    "CameraBatchSampler",
    "CropDataset",
    "DataSet",
    "MaskFiles",
    "Masks",
    "PKBatchSampler",
    "Problems",
    "Record",
    "RegionCache",
    "RegionSource",
    "Sample",
    "collate",
    "find_masks",
    "read_market",
    "read_mask",
    "read_picture",
]
