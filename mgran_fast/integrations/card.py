"""The model card of a checkpoint: README.md with metadata, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mgran_fast.model import MGRAN

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

_TEXT = """\
---
license: {license}
library_name: mgran_fast
pipeline_tag: image-feature-extraction
tags:
- person-re-identification
- reid
- mgran
- safetensors
---

# {title}

MGRAN (Mask-Guided Region Attention Network, Zhou & Yu, PAKDD 2020) for person re-identification: a crop of a pedestrian
goes in, a vector comes out that is near to vectors of the same person in pictures of other cameras. With the
layouts region and part the background is 0 in all that the network sees. Each body region is pooled for itself.

| | |
|---|---|
{rows}

The estimator of masks and keypoints is not part of this checkpoint: it comes with the library, or is passed as `mra=`.

## How to load it

```python
import mgran_fast

model = mgran_fast.MGRAN.from_pretrained({source})
extractor = mgran_fast.FeatureExtractor(model)
embeddings = extractor(["a.jpg", "b.jpg"])  # float32 [2, {dim}], unit norm
```

## What was measured

{measured}

## Intended use

To compare crops of people in research, in tracking within one recording, and where those who are seen have agreed or
the law allows it.

## Limits

* Person re-identification is surveillance technology. To follow people across cameras is processing of personal data,
  in many places of biometric data, and may need consent, an assessment of its impact, or be forbidden. Whoever uses the
  model answers for that. Do not use it to single out people by protected traits.
* It compares clothes, build and belongings. Who changes clothes is not found again, and people who are dressed alike
  are taken for one another. A match is a hint and no proof of identity: a person has to look before anything follows.
* Accuracy falls on cameras, seasons and people unlike those of the training, and may differ between groups of people.
  Measure it on pictures of your own: `mgran-fast evaluate`.
* The licence of these weights is as stated above; the data that they were trained on may restrict their use further.
"""


def card(model: MGRAN, name: str | None, notes: Mapping[str, str], license: str) -> str:
    """The text of README.md.

    Args:
        name: "owner/name" on the hub, None for a folder.
        notes: what is known of the training, and figures; told as they are.
        license: an identifier of the hub ("apache-2.0", "cc-by-nc-4.0", "other", "unknown").

    Raises:
        ValueError: a license that is no identifier.
    """
    if not _LICENSE.fullmatch(license):
        raise ValueError(f"license must be an identifier of the hub such as apache-2.0 or other, not {license!r}")
    parameters = sum(p.numel() for p in model.ma.parameters())
    height, width = model.size
    rows = {
        "body layout": f"{model.layout.name}: {', '.join(model.layout.inputs)}",
        "inputs": f"{len(model.layout.inputs)} ({model.shape}), {height}x{width} pixels (height x width)",
        "trunk": model.config["trunk"],
        "embedding": f"{model.dim} numbers: {len(model.layout.inputs)} x {model.ma.trunk.dim}",
        "parameters": f"{parameters:,}",
        "identities in training": str(model.num_classes or "not known"),
    }
    told = (
        f"| note | value |\n|---|---|\n{_table(notes)}"
        if notes
        else (
            "No figures came with this checkpoint. Measure it on pictures of your own before you rely on it:"
            " `mgran-fast evaluate`."
        )
    )
    return _TEXT.format(
        license=license,
        title=_cell(name.rpartition("/")[2]) if name else "MGRAN",
        rows=_table(rows),
        source=json.dumps(name if name else "path/to/this/folder"),
        dim=model.dim,
        measured=told,
    )


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())


def _cell(text: object) -> str:
    """In one line, and within one cell."""
    return " ".join(str(text).split()).replace("|", "\\|")
