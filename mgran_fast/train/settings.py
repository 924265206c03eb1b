"""What the settings of every kind of run share: YAML, saved beside the checkpoints, compared on resume."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.weights import files

#: The key under which a run keeps the digest of its data beside its settings.
DATA = "data"
_LIST = "tag:yaml.org,2002:seq"

Self = TypeVar("Self", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses of settings; ``precision`` is one of them.

    Fields are of type int, float, bool or str, a tuple of one of these, or one of all that or None.
    """

    #: What a resumed run may change: the result does not depend on it.
    free_on_resume: ClassVar[tuple[str, ...]] = ("workers", "evaluate_every", "checkpoint_minutes")

    @classmethod
    def make(cls: type[Self], values: Mapping[str, Any], source: str = "") -> Self:
        """The settings of these values, the defaults for all others.

        Raises DataError for a value out of its range; the message begins with ``source``.
        """
        try:
            return cls(**values)
        except ValueError as error:
            raise DataError(f"{source}: {error}" if source else str(error)) from None

    @classmethod
    def from_yaml(cls: type[Self], path: Path, **overrides: Any) -> Self:
        """The settings that a file gives, the defaults for what it leaves out; ``overrides`` count more than both.

        Raises DataError, which names the file, the key and what is wanted.
        """
        values = cls.read(path)
        # The reason begins with the name of the setting.
        try:
            return cls(**{**values, **overrides})
        except ValueError as error:
            ours = str(error).split(" ", 1)[0] in overrides
            raise DataError(str(error) if ours else f"{path}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The settings that a file names, each of its type. What a run keeps beside its own is skipped."""
        found = _mapping(path)
        found.pop(DATA, None)
        return cls.checked(found, str(path))

    @classmethod
    def checked(cls, values: Mapping[Any, Any], source: str) -> dict[str, Any]:
        """``values`` as YAML gives them, each converted to its type. Raises DataError, beginning with ``source``."""
        kinds = cls.kinds()
        for name in values:
            if name not in kinds:
                near = difflib.get_close_matches(str(name), kinds, 1, 0.5)
                hint = f"; the nearest is {near[0]!r}" if near else f"; there are {', '.join(kinds)}"
                raise DataError(f"{source}: no setting {_shown(name)}{hint}")
        converted = {}
        for name, value in values.items():
            try:
                converted[name] = _converted(value, kinds[name])
            except TypeError:
                raise DataError(f"{source}: {name} must be {_told(kinds[name])}, not {_shown(value)}") from None
        return converted

    @classmethod
    def parse(cls, text: str, option: str = "--set") -> dict[str, Any]:
        """ "key=value", the value in YAML -> {key: value}. Raises DataError, which names ``option``."""
        import yaml

        name, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"{option} {text}: write KEY=VALUE, for example gamma=0.1")
        try:
            found = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise DataError(f"{option} {text}: {_reason(error)}") from None
        return cls.checked({name.strip().replace("-", "_"): found}, f"{option} {text}")

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """The type of each setting by its name."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    def to_yaml(self, **beside: str) -> str:
        """YAML of all settings, and of what is kept beside them."""
        import yaml

        class Dumper(yaml.SafeDumper):  # type: ignore[misc]
            """Tuples in one line."""

        Dumper.add_representer(tuple, lambda to, value: to.represent_sequence(_LIST, value, flow_style=True))
        plain = {**dataclasses.asdict(self), **beside}
        text: str = yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True)
        return text

    def save(self, path: Path, data: str = "") -> None:
        """Write as YAML, whole or not at all; ``data`` is a digest of the training data, kept beside the settings.

        Raises OSError.
        """
        files.write(path, self.to_yaml(**{DATA: data}).encode())

    def check_resume(self, path: Path, data: str = "") -> None:
        """Raise CheckpointError unless the run whose settings lie at ``path`` can go on with these and this data.

        Everything must be the same but what is in ``free_on_resume``, and a precision that is "auto" on either side.
        """
        if not path.exists() and path.with_suffix(".json").exists():
            raise CheckpointError(
                f"{path.parent}: cannot resume, the run is of an earlier version of mgran_fast"
                f" ({path.with_suffix('.json').name}); train anew into another --output"
            )
        try:
            found = _mapping(path, empty=False)
            used_data = found.pop(DATA, None)
            before = self.checked(found, str(path))
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise CheckpointError(f"{path}: cannot resume, its settings are not readable ({reason})") from None
        for field in dataclasses.fields(self):
            # A setting that is younger than the run has its default in it.
            name, was, now = field.name, before.get(field.name, field.default), getattr(self, field.name)
            if name in self.free_on_resume or (name == "precision" and "auto" in (was, now)):
                continue
            if was != now:
                raise CheckpointError(
                    f"{path.parent}: cannot resume, the run has {name}={was!r} and you ask for {now!r}; use the same"
                    " settings, or another --output"
                )
        if used_data != data:
            raise CheckpointError(
                f"{path.parent}: cannot resume, the run was made with other training pictures or people;"
                " use the same data, or another --output"
            )


def _mapping(path: Path, *, empty: bool = True) -> dict[Any, Any]:
    """What a YAML file holds, which must be a mapping, or nothing where it may be ``empty``."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text in UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no YAML ({_reason(error)})") from None
    if found is None and empty:
        return {}
    if not isinstance(found, dict):
        raise DataError(f"{path}: settings are lines of KEY: VALUE")
    # The reader of YAML would take the last of two without a word.
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: {twice} is given twice")
    return found


def _reason(error: Exception) -> str:
    """One line of what the reader of YAML says."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f"line {mark.line + 1}: "
    lines = str(problem or error).splitlines()
    return where + (lines[0] if lines else type(error).__name__)


def _options(kind: Any) -> tuple[Any, bool]:
    """A type without its None, and whether it had one."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        left = [one for one in typing.get_args(kind) if one is not types.NoneType]
        assert len(left) == 1, "a setting has one type, or that or None"
        return left[0], True
    return kind, False


def _converted(value: Any, kind: Any) -> Any:
    """``value`` as one of type ``kind``; TypeError where it is none."""
    kind, may_lack = _options(kind)
    if value is None and may_lack:
        return None
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise TypeError
        if parts[-1] is Ellipsis:
            parts = (parts[0],) * len(value)
        if len(parts) != len(value):
            raise TypeError
        return tuple(_converted(one, part) for one, part in zip(value, parts, strict=True))
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3, which has no point, as text.
        try:
            return float(value)
        except ValueError:
            raise TypeError from None
    if kind is float and type(value) is int:
        return float(value)
    # type(), not isinstance(): true is an int.
    if type(value) is not kind:
        raise TypeError
    return value


def _told(kind: Any) -> str:
    """A type in words."""
    kind, may_lack = _options(kind)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        many = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        words = f"a list of {many}{'whole numbers' if parts[0] is int else 'numbers'}"
    else:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    return f"{words} or null" if may_lack else words


def _shown(value: Any) -> str:
    text = reprlib.repr(value).replace("\n", " ")
    return text if len(text) <= 100 else f"{text[:100]} ..."
