"""A gallery of embeddings to search in: added to, removed from, saved, loaded, asked."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mgran_fast.metrics.distances import METRICS, Numbers, as_tensor, finish, terms
from mgran_fast.search.approximate import InvertedFile
from mgran_fast.search.columns import Labels, Moment, Moments, Rows, Texts, Times, moments, texts_of
from mgran_fast.search.found import Entry, Found
from mgran_fast.search.nearest import Embeddings, nearest

#: Lists that an approximate search looks at, and how many candidates it compares for each that is wanted.
PROBES, CANDIDATES = 16, 4
# Numbers of embeddings that are gathered at once for candidates.
_GATHERED = 2**24


class Gallery:
    """Embeddings, each with a name, and what is known of them: person, camera, time, visible parts.

        gallery = Gallery()
        gallery.add(model(crops), names, cameras=cameras, times=times)
        found = gallery.search(model(query), k=10, not_cameras=["door"], since="2026-11-27T08:00")
        found.entries[0][0].name, found.entries[0][0].distance
        gallery.save("galleries/street")
        gallery = Gallery.load("galleries/street")

    A search compares with every entry, and its result is exact up to the rounding of float32 products. Beyond a
    million entries :meth:`index` makes it approximate and faster.

    Args:
        metric: "euclidean" or "cosine", see :mod:`mgran_fast.metrics.distances`.
        device: where the embeddings are held and compared.
        model: what made the embeddings, such as the digest of a checkpoint, if anything; it is saved with them.
        root: the folder that names are paths below, where they are paths; it is saved too.

    Raises ValueError for an unknown metric.
    """

    def __init__(
        self,
        *,
        metric: str = "euclidean",
        device: str | torch.device = "cpu",
        model: str = "",
        root: str | os.PathLike[str] = "",
    ) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
        self.metric, self.model, self.root = metric, model, os.fspath(root)
        self.device = torch.device(device)
        self._names: list[str] = []
        self._places: dict[str, int] = {}
        self._persons, self._cameras, self._times = Texts(), Texts(), Times()
        self._vectors: Rows | None = None
        self._terms = Rows(torch.zeros(0, device=self.device))
        self._visible: Rows | None = None
        self._index: InvertedFile | None = None

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __repr__(self) -> str:
        return f"Gallery({len(self)} entries of {self.width} numbers, {self.metric}, on {self.device})"

    @property
    def width(self) -> int:
        """D, the length of an embedding; 0 while the gallery is empty and was never anything else."""
        return 0 if self._vectors is None else int(self._vectors.values.shape[1])

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were added; a place in a search's ``index`` is a place here."""
        return tuple(self._names)

    @property
    def persons(self) -> list[str | None]:
        """Of each entry."""
        return self._persons.all()

    @property
    def cameras(self) -> list[str | None]:
        """Of each entry."""
        return self._cameras.all()

    @property
    def times(self) -> Moments:
        """datetime64[us] [N], UTC; NaT where it is not known."""
        return np.array(self._times.values)

    @property
    def embeddings(self) -> torch.Tensor:
        """float32 [N, D], a view: not to be written to."""
        return torch.zeros(0, 0) if self._vectors is None else self._vectors.values

    @property
    def visible(self) -> torch.Tensor | None:
        """bool [N, P], a view, or None."""
        return None if self._visible is None else self._visible.values

    def add(
        self,
        embeddings: Numbers,
        names: Sequence[str | os.PathLike[str]],
        *,
        persons: Labels | None = None,
        cameras: Labels | None = None,
        times: Sequence[Moment] | npt.NDArray[np.generic] | None = None,
        visible: Numbers | None = None,
        replace: bool = False,
    ) -> None:
        """Add entries: all of them or, where something is wrong, none.

        Args:
            embeddings: floating point [N, D], or parts [N, P, D'] which are joined; kept as float32.
            names: N, each once in a gallery.
            persons, cameras: N whole numbers or texts, kept as text; None for what is not known.
            times: N moments: seconds since 1970, datetimes, datetime64 or ISO 8601 text, UTC where there is no zone;
                None for what is not known.
            visible: 0 and 1 (or bool) [N, P], which parts each picture shows; for all entries of a gallery or for none.
            replace: whether an entry may take the place of one of its name.

        Raises:
            TypeError: an argument is not of numbers where it should be.
            ValueError: lengths do not fit, a name is there already or twice, an embedding is of another length than
                those that are here, or holds NaN or infinite values.
        """
        given = self._embeddings(embeddings, "embeddings")
        # Nobody else's memory: the first rows are kept as they are.
        vectors = given if len(self) else given.clone()
        self.take(vectors, names, persons, cameras, times, visible, replace)

    def take(
        self,
        vectors: torch.Tensor,
        names: Sequence[str | os.PathLike[str]],
        persons: Labels | None = None,
        cameras: Labels | None = None,
        times: Sequence[Moment] | npt.NDArray[np.generic] | None = None,
        visible: Numbers | None = None,
        replace: bool = False,
    ) -> None:
        """As :meth:`add`, of embeddings float32 [N, D] on the gallery's device whose memory it may keep."""
        texts = [os.fspath(name) for name in names]
        seen = self._seen(visible, len(vectors), "visible")
        labels = {"names": texts, "persons": persons, "cameras": cameras, "times": times}
        for label, values in labels.items():
            if values is not None and len(values) != len(vectors):
                raise ValueError(f"{label} has {len(values)} values for {len(vectors)} embeddings: one for each")
        whose, where = (texts_of(values, len(vectors)) for values in (persons, cameras))
        when = moments([None] * len(vectors) if times is None else times)
        self._check_names(texts, replace)
        if not texts:
            return
        try:
            own = terms(vectors, self.metric, torch.float32, "embeddings")
        except ValueError as error:
            bad = next(i for i, row in enumerate(vectors) if not bool(row.square().sum().isfinite()))
            raise ValueError(f"{error} ({texts[bad]!r}); nothing was added") from None
        if self._vectors is None:
            self._vectors = Rows(vectors[:0])
        if seen is not None and self._visible is None:
            self._visible = Rows(seen.new_zeros(0, seen.shape[1]))
        old = [i for i, name in enumerate(texts) if name in self._places]
        for i in old:
            place = self._places[texts[i]]
            self._vectors.values[place], self._terms.values[place] = vectors[i], own[i]
            if seen is not None and self._visible is not None:
                self._visible.values[place] = seen[i]
            self._persons.put(place, whose[i])
            self._cameras.put(place, where[i])
            self._times.put(place, when[i])
        if old:
            self._index = None
            new = sorted(set(range(len(texts))) - set(old))
            chosen = torch.tensor(new, dtype=torch.int64)
            texts = [texts[i] for i in new]
            whose, where = ([values[i] for i in new] for values in (whose, where))
            vectors, own, when = vectors[chosen], own[chosen], when[new]
            seen = None if seen is None else seen[chosen]
        self._places.update(zip(texts, range(len(self), len(self) + len(texts)), strict=True))
        self._names += texts
        self._vectors.add(vectors)
        self._terms.add(own)
        if seen is not None and self._visible is not None:
            self._visible.add(seen)
        self._persons.add(whose)
        self._cameras.add(where)
        self._times.add(when)
        if self._index is not None:
            self._index.add(vectors)

    def remove(self, names: Iterable[str | os.PathLike[str]]) -> None:
        """Remove entries: all of them or, where one is not there, none; the others keep their order.

        Raises ValueError, which names those that are not there.
        """
        gone = {os.fspath(name) for name in ([names] if isinstance(names, (str, os.PathLike)) else names)}
        missing = sorted(gone - self._places.keys())
        if missing:
            raise ValueError(f"{len(missing)} of {len(gone)} names are not in the gallery, first {missing[0]!r}")
        if not gone:
            return
        kept = [place for place, name in enumerate(self._names) if name not in gone]
        places = torch.tensor(kept, dtype=torch.int64)
        for column in (self._vectors, self._terms, self._visible, self._persons, self._cameras, self._times):
            if column is not None:
                column.keep(places)
        self._names = [self._names[place] for place in kept]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._index = None

    def search(
        self,
        query: Numbers,
        k: int = 10,
        *,
        cameras: Iterable[object] | None = None,
        not_cameras: Iterable[object] = (),
        since: Moment = None,
        until: Moment = None,
        visible: Numbers | None = None,
        approximate: bool = False,
        probes: int = PROBES,
    ) -> Found:
        """The ``k`` nearest entries of each query; of two at one distance the one that was added first.

        Args:
            query: floating point [Q, D], or a single [D].
            cameras, not_cameras: only entries by these cameras, and none by those. An entry whose camera is not known
                is by none.
            since, until: only entries from ``since`` on and before ``until``, as :meth:`add` takes times; those whose
                time is not known are left out then.
            visible: [Q, P], which parts each query shows: compares the parts that both pictures show, see
                :func:`mgran_fast.metrics.visible`. The gallery must have been given its own.
            approximate: look at what :meth:`index` suggests and no more. Distances are as exact as always; an entry
                may be missing.
            probes: how many of the index's lists to look at then.

        Raises:
            TypeError: the query is not of floating point numbers.
            ValueError: the query does not fit the gallery, holds NaN or infinite values, or an argument is out of its
                range.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, not {probes}")
        given = as_tensor(query, "query")
        asked = self._embeddings(given[None] if given.ndim == 1 else given, "query")
        seen = self._seen(visible, len(asked), "visible of the query")
        own = terms(asked, self.metric, torch.float32, "query")
        places = self._allowed(cameras, not_cameras, since, until)
        if approximate:
            if seen is not None:
                raise ValueError("approximate and visible: an index compares whole embeddings; take one of the two")
            distance, index = self._approximate(asked, own, k, probes, places)
        else:
            held = Embeddings(self.embeddings, self._terms.values, None if seen is None else self.visible)
            distance, index = nearest(Embeddings(asked, own, seen), held, self.metric, k, places)
        found, far = index.numpy(), distance.double().numpy()
        return Found(found, far, self._entries(found, far))

    def index(self, lists: int | None = None) -> None:
        """Build an inverted file for approximate searches, with FAISS.

        It holds a second copy of the embeddings, in half precision. What is added later goes into it; after a removal
        or a replacement it is gone, and is to be built again. It is not saved.

        Args:
            lists: how many lists the entries are shared out among; None for about four times the root of their number.

        Raises:
            MGRANError: FAISS is not installed.
            ValueError: the gallery is empty, or ``lists`` is out of its range.
        """
        if not len(self):
            raise ValueError("the gallery is empty: there is nothing to index")
        self._index = InvertedFile(self.embeddings, self.metric, lists)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the gallery to a folder: ``entries.parquet``, and a safetensors file of the embeddings.

        After a kill at any moment the folder holds the gallery of before or this one. Returns the folder. Raises
        DataError where it cannot be written, and MGRANError without pyarrow.
        """
        from mgran_fast.search.files import save

        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Gallery:
        """Read what :meth:`save` wrote. Raises DataError where it is missing or damaged, MGRANError without pyarrow."""
        from mgran_fast.search.files import load

        return load(Path(folder), torch.device(device))

    def _embeddings(self, values: Numbers, name: str) -> torch.Tensor:
        vectors = as_tensor(values, name)
        if not vectors.is_floating_point():
            raise TypeError(f"{name} must be floating point, not {vectors.dtype}")
        if vectors.ndim not in (2, 3) or not vectors.shape[-1]:
            raise ValueError(f"{name} must be [N, D] or [N, P, D], not {list(vectors.shape)}")
        vectors = vectors.flatten(1)
        if self._vectors is not None and vectors.shape[1] != self.width:
            raise ValueError(
                f"{name} has {vectors.shape[1]} numbers a row and the gallery {self.width}: they must come from the "
                "same model"
            )
        return vectors.to(self.device, torch.float32).contiguous()

    def _seen(self, visible: Numbers | None, count: int, name: str) -> torch.Tensor | None:
        if visible is None:
            if self._visible is not None and name == "visible" and count:
                raise ValueError("visible is missing: the entries of this gallery have it")
            return None
        seen = as_tensor(visible, name)
        seen = seen[None] if seen.ndim == 1 else seen
        if seen.ndim != 2 or len(seen) != count or not bool(((seen == 0) | (seen == 1)).all()):
            raise ValueError(f"{name} must be 0 and 1, [{count}, P], not {list(seen.shape)} of {seen.dtype}")
        if self._visible is None and len(self):
            raise ValueError(f"{name} is given, and the entries of this gallery have none: leave it out")
        if self._visible is not None and seen.shape[1] != self._visible.values.shape[1]:
            raise ValueError(f"{name} has {seen.shape[1]} parts, the gallery {self._visible.values.shape[1]}")
        return (seen == 1).to(self.device)

    def _check_names(self, names: Sequence[str], replace: bool) -> None:
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise ValueError(f"{twice!r} is named twice: a name stands for one entry; nothing was added")
        there = [] if replace else [name for name in names if name in self._places]
        if there:
            raise ValueError(
                f"{len(there)} of {len(names)} names are in the gallery already, first {there[0]!r}: remove them "
                "first, leave them out, or let replace=True overwrite them; nothing was added"
            )

    def _allowed(
        self, cameras: Iterable[object] | None, not_cameras: Iterable[object], since: Moment, until: Moment
    ) -> torch.Tensor | None:
        """The places that a search may find, rising; None for all."""
        if isinstance(cameras, str) or isinstance(not_cameras, str):
            raise ValueError("cameras and not_cameras must be lists of cameras, not one text")
        excluded, timed = list(not_cameras), since is not None or until is not None
        if cameras is None and not excluded and not timed:
            return None
        allowed = np.ones(len(self), dtype=bool)
        if cameras is not None:
            allowed &= self._cameras.among(cameras)
        if excluded:
            allowed &= ~self._cameras.among(excluded)
        if timed:
            allowed &= self._times.between(since, until)
        return torch.from_numpy(np.flatnonzero(allowed))

    def _approximate(
        self, query: torch.Tensor, own: torch.Tensor, k: int, probes: int, places: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._index is None:
            raise ValueError("there is no index: call index() first; after a removal or a replacement, again")
        candidates = self._index.candidates(query, min(CANDIDATES * k, len(self)), probes, places)
        # By place, so that a stable sort leaves the one that was added first in front.
        candidates = candidates.sort(dim=1).values
        parts = []
        step = max(1, _GATHERED // max(1, candidates.shape[1] * query.shape[1]))
        for some, rows, mine in zip(candidates.split(step), query.split(step), own.split(step), strict=True):
            at = some.clamp(min=0).to(self.device)
            dots = torch.einsum("qkd,qd->qk", self.embeddings[at], rows)
            parts.append(finish(self.metric, dots, mine[:, None], self._terms.values[at]).cpu())
        distance = torch.cat(parts).masked_fill(candidates < 0, torch.inf)
        distance, order = distance.sort(dim=1, stable=True)
        short = max(0, k - distance.shape[1])
        index = candidates.gather(1, order)
        pad = torch.nn.functional.pad
        return pad(distance, (0, short), value=torch.inf)[:, :k], pad(index, (0, short), value=-1)[:, :k]

    def _entries(
        self, index: npt.NDArray[np.int64], distance: npt.NDArray[np.float64]
    ) -> tuple[tuple[Entry, ...], ...]:
        """What is known of those that were found: a column at a time, of all queries at once."""
        there = index >= 0
        places = index[there]
        names = [self._names[place] for place in places.tolist()]
        columns = (self._persons.at(places), self._cameras.at(places), self._times.at(places))
        entries = map(Entry, names, *columns, distance[there].tolist())
        return tuple(tuple(itertools.islice(entries, count)) for count in there.sum(axis=1).tolist())
