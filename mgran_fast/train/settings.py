"""What the settings of every kind of run share: saved beside the checkpoints, compared on resume."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mgran_fast.errors import CheckpointError


@dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses of settings; ``precision`` is one of them."""

    #: What a resumed run may change: the result does not depend on it.
    free_on_resume: ClassVar[tuple[str, ...]] = ("workers", "evaluate_every")

    def save(self, path: Path, data: str = "") -> None:
        """Write as JSON, whole or not at all; ``data`` is a digest of the training data, kept beside the settings."""
        draft = path.with_name(f".{path.name}.partial")
        draft.write_text(json.dumps({**dataclasses.asdict(self), "data": data}, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, path)

    def check_resume(self, path: Path, data: str = "") -> None:
        """Raise CheckpointError unless the run whose settings lie at ``path`` can go on with these and this data.

        Everything must be the same but workers, evaluate_every, and a precision that is "auto" on either side.
        """
        try:
            before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot resume, its settings are not readable ({error})") from None
        if not isinstance(before, dict):
            raise CheckpointError(f"{path}: cannot resume, its settings are no JSON object")
        now = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in now:
            if name in self.free_on_resume or (name == "precision" and "auto" in (before.get(name), now[name])):
                continue
            if before.get(name) != now[name]:
                raise CheckpointError(
                    f"{path.parent}: cannot resume, the run has {name}={before.get(name)!r} and you ask for"
                    f" {now[name]!r}; use the same settings, or another --output"
                )
        if before.get("data") != data:
            raise CheckpointError(
                f"{path.parent}: cannot resume, the run was made with other training pictures or people;"
                " use the same data, or another --output"
            )
