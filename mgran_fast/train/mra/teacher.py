"""Labels that an estimator makes for crops that have none: what a smaller network is distilled from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mgran_fast.data.dataset import BadPicture, Problems
from mgran_fast.data.pictures import read_picture_and_shape
from mgran_fast.data.precompute import NOT_FINITE, finite
from mgran_fast.data.provenance import identity
from mgran_fast.errors import DataError
from mgran_fast.mra.estimate import Estimate, Estimator
from mgran_fast.weights import files

_KEYPOINTS, _TEACHER, _LINES = "keypoints.json", "teacher.json", "keypoints.partial.jsonl"


def teach(
    estimator: Estimator,
    pictures: Sequence[Path],
    root: Path,
    output: Path,
    *,
    size: tuple[int, int] = (256, 128),
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    problems: Problems | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write masks and keypoints of pictures into a folder, in the layout of :mod:`mgran_fast.data.masks`.

    An interrupted call goes on where it stopped: what is written is not estimated again.

    Args:
        estimator: on ``device``, in eval mode.
        pictures: the crops, all below ``root``.
        root: the folder that their places count from.
        output: gets ``masks/<place>.png`` and ``keypoints.json``; made when missing.
        size: (height, width) in pixels that crops are resized to before the estimator, and of the masks.
        problems: takes up the pictures that could not be read, and those for which the answer is not finite; they
            get no labels.

    Raises:
        DataError: ``output`` holds the labels of another estimator or size, or cannot be written.
    """
    problems = Problems() if problems is None else problems
    kind, weights, arguments = identity(estimator)
    # As JSON has them: a tuple would never equal the list that is read back.
    made_by = json.loads(json.dumps({"estimator": kind, "weights": weights, "arguments": arguments, "size": size}))
    try:
        (output / "masks").mkdir(parents=True, exist_ok=True)
        _check_teacher(output / _TEACHER, made_by)
        entries = _entries(output)
        todo = [path for path in pictures if path.relative_to(root).as_posix() not in entries]
        if todo:
            loader = DataLoader(_Crops(todo, size), batch_size, num_workers=workers, collate_fn=list)
            done = len(pictures) - len(todo)
            with open(output / _LINES, "a", encoding="utf-8") as lines, torch.no_grad():
                for batch in loader:
                    problems.add(sample for sample in batch if isinstance(sample, BadPicture))
                    good = [sample for sample in batch if not isinstance(sample, BadPicture)]
                    if good:
                        found = estimator(torch.from_numpy(np.stack([crop for _, crop, _ in good])).to(device))
                        chosen = {}
                        for i, ((index, _, shape), sound) in enumerate(zip(good, finite(found), strict=True)):
                            if sound:
                                chosen[i] = (todo[index].relative_to(root), shape)
                            else:
                                # NaN in the keypoint file would spoil the labels of all pictures.
                                problems.add([BadPicture(index, f"{todo[index]}: {NOT_FINITE}", size)])
                        new = _write(output, chosen, found)
                        # After its masks: a line says that everything of its picture is there.
                        lines.writelines(json.dumps(item) + "\n" for item in new.items())
                        lines.flush()
                        entries |= new
                    done += len(batch)
                    if progress is not None:
                        progress(done, len(pictures))
        _put(output / _KEYPOINTS, json.dumps(entries).encode())
        (output / _LINES).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error.strerror}); make room, or choose another place"
        ) from error


def _check_teacher(path: Path, made_by: dict[str, Any]) -> None:
    if not path.is_file():
        _put(path, json.dumps(made_by).encode())
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if before != made_by:
        raise DataError(
            f"{path.parent}: holds labels of another teacher or of another --size; delete the folder or choose"
            " another --output"
        )


def _entries(output: Path) -> dict[str, Any]:
    """What earlier calls have written, finished or not."""
    entries: dict[str, Any] = {}
    if (output / _KEYPOINTS).is_file():
        try:
            entries = dict(json.loads((output / _KEYPOINTS).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{output / _KEYPOINTS}: not valid ({error}); delete {output}") from error
    if (output / _LINES).is_file():
        kept = []
        for line in (output / _LINES).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, entry = json.loads(line)
            except (ValueError, TypeError):
                break  # cut off when the process was killed
            entries[key] = entry
            kept.append(line + "\n")
        # A line that was cut off must not run into the next one.
        _put(output / _LINES, "".join(kept).encode())
    return entries


def _write(output: Path, chosen: dict[int, tuple[Path, tuple[int, int]]], found: Estimate) -> dict[str, dict[str, Any]]:
    """Write the masks of some answers, by their number, and return their entries."""
    masks = (found.mask.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    keypoints, presence = found.keypoints.float().cpu().numpy(), found.presence.float().cpu().tolist()
    new = {}
    for i, (place, (height, width)) in chosen.items():
        mask = masks[i]
        # Keypoints are in pixels of the picture as it is; a mask has its aspect ratio, and no fewer rows than it had.
        scale = np.array([width / mask.shape[1], height / mask.shape[0], 1], np.float32)
        times = -(-mask.shape[0] // height)
        buffer = io.BytesIO()
        Image.fromarray(mask).resize((times * width, times * height), Image.Resampling.BILINEAR).save(buffer, "PNG")
        file = output / "masks" / place.with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        _put(file, buffer.getvalue())
        rows = [[round(float(x), 2), round(float(y), 2), round(float(s), 3)] for x, y, s in keypoints[i] * scale]
        new[place.as_posix()] = {"presence": round(presence[i], 4), "keypoints": rows}
    return new


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with files.replaced(path) as draft:
        draft.write_bytes(content)


_Read = tuple[int, "np.ndarray[Any, np.dtype[np.uint8]]", tuple[int, int]]


class _Crops(Dataset["_Read | BadPicture"]):
    """(place, crop uint8 [H, W, 3], (height, width) of the picture) for each picture."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> _Read | BadPicture:
        try:
            crop, shape = read_picture_and_shape(self.paths[index], self.size)
        except DataError as error:
            return BadPicture(index, str(error), self.size)
        return index, crop, shape
