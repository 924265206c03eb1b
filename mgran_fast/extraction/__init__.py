"""Embeddings of millions of pictures as Parquet: resumable, in parallel processes, on a Ray cluster.

    OUTPUT/part-000000.parquet ...    path, person, camera, time, embedding, visible, no_person, model
    OUTPUT/_plan/                     which pictures are in which part, and how they are embedded

The plan is made first and says which pictures go into which part; a part is written by one process and appears whole.
So what a run makes is the same to the byte on machines of one kind, however many processes make it and however often
they are killed.
"""

from mgran_fast.extraction.parts import columns, is_extraction, load_gallery
from mgran_fast.extraction.run import Extracted, extract

__all__ = ["Extracted", "columns", "extract", "is_extraction", "load_gallery"]
