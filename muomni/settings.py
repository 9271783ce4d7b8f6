"""Strict conversion of frozen dataclasses to and from plain types, and `name=value` overrides.

Standard library only. An unknown key is an error with a suggestion, never ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from muomni.errors import UserError


class ConfigError(UserError, ValueError):
    """A setting that does not exist, has the wrong type, or contradicts another one."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


TRAINING_ONLY = {"training_only": True}
"""Metadata of a field that training alone reads: two models that differ in it are of one kind."""


def shaping(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Of the plain values of a config class those that its weights and what they compute depend on."""
    hints = typing.get_type_hints(cls)
    left_out = {f.name for f in dataclasses.fields(cls) if f.metadata == TRAINING_ONLY}
    return {
        name: shaping(value, hints[name])
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints.get(name))
        else value
        for name, value in values.items()
        if name not in left_out
    }


def from_dict(cls: type[T], values: dict[str, Any], *, path: str = "") -> T:
    """Build a config strictly.

    Raises ConfigError for an unknown key (with the nearest one), a missing key or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in values:
        if key not in fields:
            raise ConfigError(_unknown(f"{path}{key}", key, list(fields), cls.__name__, path))
    arguments: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{path}{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}{name}: missing; {cls.__name__} needs it.")
    return cls(**arguments)


def override(config: T, settings: list[str]) -> T:
    """Apply `a.b=value` settings to a frozen config and validate the result.

    Raises ConfigError for a malformed setting, an unknown name (with the nearest one) or a wrong type.
    """
    values = to_dict(config)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: expected name=value, for example optim.lr=3e-4.")
        node, cls, parts = values, type(config), name.split(".")
        for depth, part in enumerate(parts):
            hints = typing.get_type_hints(cls)
            if part not in hints:
                prefix = "".join(f"{p}." for p in parts[:depth])
                raise ConfigError(_unknown(name, part, list(hints), type(config).__name__, prefix))
            hint = hints[part]
            if depth == len(parts) - 1:
                if dataclasses.is_dataclass(hint):
                    raise ConfigError(
                        f"--set {setting}: {name} is a group; set one of its fields: "
                        f"{', '.join(f'{name}.{f.name}' for f in dataclasses.fields(hint))}."
                    )
                node[part] = _parse(hint, text, name)
            elif not dataclasses.is_dataclass(hint):
                raise ConfigError(f"--set {setting}: {'.'.join(parts[: depth + 1])} has no fields.")
            else:
                node, cls = node[part], typing.cast(type, hint)
    return from_dict(type(config), values)


def _unknown(name: str, key: str, known: list[str], owner: str, prefix: str) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(prefix + k for k in known)}."
    return f"{name} is not a setting of {owner}; {hint}"


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: expected a group of settings, got {value!r}.")
        return from_dict(typing.cast(type, hint), value, path=f"{name}.")
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        require(value in choices, f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}.")
        return value
    if origin is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value]
        element = [choices[0]] * len(items) if choices[-1] is Ellipsis else list(choices)
        require(len(items) == len(element), f"{name}: expected {len(element)} values, got {value!r}.")
        return tuple(_convert(h, v, name) for h, v in zip(element, items, strict=True))
    if isinstance(hint, types.UnionType):
        return (
            None if value is None else _convert(next(h for h in choices if h is not type(None)), value, name)
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    require(
        isinstance(value, hint) and (hint is bool or not isinstance(value, bool)),
        f"{name}: expected {hint.__name__}, got {value!r}.",
    )
    return value


def _parse(hint: Any, text: str, name: str) -> Any:
    if hint is bool:
        require(text.lower() in ("true", "false"), f"{name}: expected true or false, got {text!r}.")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{name}: expected {hint.__name__}, got {text!r}.") from None
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        return [_parse(element, part, name) for part in text.split(",")]
    return text
