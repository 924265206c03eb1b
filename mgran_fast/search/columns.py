"""Columns that grow: what a gallery knows of its entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

#: A moment: seconds since 1970 (UTC), a datetime, a numpy.datetime64, or ISO 8601 text; None where it is not known.
#: Without a zone it is UTC.
Moment: TypeAlias = "float | datetime | np.datetime64 | str | None"
#: A whole number or text for each entry, None where it is not known.
Labels: TypeAlias = Sequence[object] | npt.NDArray[Any] | torch.Tensor
#: datetime64[us], UTC.
Moments: TypeAlias = npt.NDArray[np.datetime64]

_UNKNOWN = -1
_NO_TIME = np.iinfo(np.int64).min  # what numpy makes of NaT


class Rows:
    """Rows of numbers [N, ...] with room for more, so that adding one at a time takes no copy of all each time."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._held, self._count = rows, len(rows)

    @property
    def values(self) -> torch.Tensor:
        """The rows, a view."""
        return self._held[: self._count]

    def add(self, rows: torch.Tensor) -> None:
        """Append rows, converted to what is here; the first ones are kept without a copy."""
        count = self._count + len(rows)
        if not self._count and rows.dtype == self._held.dtype and rows.device == self._held.device:
            self._held, self._count = rows, count
            return
        if count > len(self._held):
            held = self._held.new_empty((max(count, len(self._held) * 3 // 2), *self._held.shape[1:]))
            held[: self._count] = self.values
            self._held = held
        self._held[self._count : count] = rows
        self._count = count

    def keep(self, places: torch.Tensor) -> None:
        """Keep these rows, rising, and give back the room."""
        self._held = self.values[places.to(self._held.device)]
        self._count = len(self._held)


class Texts:
    """A text for each entry, or None; each text is held once."""

    def __init__(self) -> None:
        self._codes = Rows(torch.zeros(0, dtype=torch.int32))
        self._known: dict[str, int] = {}
        self._texts: list[str] = []

    def add(self, texts: Iterable[str | None]) -> None:
        """Append one for each new entry."""
        self._codes.add(torch.tensor([self._code(text) for text in texts], dtype=torch.int32))

    def put(self, place: int, text: str | None) -> None:
        """Change one."""
        self._codes.values[place] = self._code(text)

    def keep(self, places: torch.Tensor) -> None:
        """Keep the entries at these places."""
        self._codes.keep(places)

    def at(self, places: npt.NDArray[np.int64]) -> list[str | None]:
        """The texts of the entries at these places."""
        codes = self._codes.values.numpy()[places].tolist()
        return [None if code == _UNKNOWN else self._texts[code] for code in codes]

    def all(self) -> list[str | None]:
        """The texts of all entries."""
        texts = [*self._texts, None]  # None is at -1
        return [texts[code] for code in self._codes.values.tolist()]

    def among(self, texts: Iterable[object]) -> npt.NDArray[np.bool_]:
        """bool [N]: whose text is one of these; numbers count as they are written."""
        wanted = [self._known[str(text)] for text in texts if str(text) in self._known]
        found: npt.NDArray[np.bool_] = np.isin(self._codes.values.numpy(), wanted)
        return found

    def _code(self, text: str | None) -> int:
        if text is None:
            return _UNKNOWN
        if text not in self._known:
            self._known[text] = len(self._texts)
            self._texts.append(text)
        return self._known[text]


def texts_of(values: Labels | None, count: int) -> list[str | None]:
    """Labels as texts; None for all of ``count`` where there are none."""
    if values is None:
        return [None] * count
    if isinstance(values, (torch.Tensor, np.ndarray)):
        values = values.tolist()
    return [None if value is None else str(value) for value in values]


class Times:
    """A moment for each entry, in microseconds since 1970 (UTC), or none."""

    def __init__(self) -> None:
        self._rows = Rows(torch.zeros(0, dtype=torch.int64))

    @property
    def values(self) -> Moments:
        """datetime64[us] [N], UTC; NaT where it is not known."""
        return self._rows.values.numpy().view("datetime64[us]")

    def add(self, moments: Moments) -> None:
        """Append datetime64[us]."""
        self._rows.add(torch.from_numpy(moments.view(np.int64)))

    def put(self, place: int, moment: np.datetime64) -> None:
        """Change one."""
        self._rows.values[place] = int(moment.astype(np.int64))

    def keep(self, places: torch.Tensor) -> None:
        """Keep the entries at these places."""
        self._rows.keep(places)

    def at(self, places: npt.NDArray[np.int64]) -> list[datetime | None]:
        """The moments of the entries at these places."""
        values = self._rows.values.numpy()[places].tolist()
        return [None if value == _NO_TIME else _EPOCH + timedelta(microseconds=value) for value in values]

    def between(self, since: Moment, until: Moment) -> npt.NDArray[np.bool_]:
        """bool [N]: not before ``since`` and before ``until``; entries without a time are not."""
        found = ~np.isnat(self.values)
        if since is not None:
            found &= self.values >= moment(since)
        if until is not None:
            found &= self.values < moment(until)
        return found


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def moment(value: Moment) -> np.datetime64:
    """Any way to tell a moment as datetime64[us], UTC; NaT for None. Raises ValueError."""
    if value is None:
        return np.datetime64("NaT", "us")
    if isinstance(value, np.datetime64):
        found: np.datetime64 = value.astype("datetime64[us]")
        return found
    if isinstance(value, str):
        try:
            # Python before 3.11 does not know the Z.
            value = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError:
            raise ValueError(f"{value!r} is no time: write it as 2026-11-27T08:30:00, with a zone or in UTC") from None
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        return np.datetime64(aware.astimezone(timezone.utc).replace(tzinfo=None), "us")
    seconds = float(value)
    if not np.isfinite(seconds) or abs(seconds) > 1e11:
        raise ValueError(f"{value!r} is no time: give seconds since 1970")
    return np.datetime64(round(seconds * 1e6), "us")


def moments(values: Sequence[Moment] | npt.NDArray[np.generic]) -> Moments:
    """The same of a sequence or an array of numbers or datetime64."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return values.astype("datetime64[us]")
    found: Moments = np.array([moment(value) for value in values], dtype="datetime64[us]")
    return found
