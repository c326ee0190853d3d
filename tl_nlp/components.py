"""How values are checked and kinds are found: kind `top_layers` is class `TopLayers` in `methods/top_layers.py`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from tl_nlp.errors import RecipeError


class Value(BaseModel):
    """A frozen value that knows all its keys; what does not fit raises one RecipeError with the key in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise translated(error, type(self)) from None


def translated(error: ValidationError, model: type[BaseModel]) -> RecipeError:
    """The first complaint of pydantic as one sentence that names the key and what there is instead."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RecipeError):
        return RecipeError(cause.message, ".".join(part for part in (key, cause.key) if part))
    if first["type"] == "extra_forbidden":
        return RecipeError(f"no such key; there are: {', '.join(model.model_fields)}", key)
    if first["type"] == "missing":
        return RecipeError("is required", key)
    hint = ' (a list is written as JSON: ["a", "b"])' if first["type"] in ("tuple_type", "list_type") else ""
    message = str(cause) if cause else first["msg"][0].lower() + first["msg"][1:]
    return RecipeError(f"{first['input']!r} does not fit: {message}{hint}", key)


class Component(Value):
    """A choice among kinds; serialized with the kind that finds its class again."""

    @property
    def kind(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: Any) -> dict[str, Any]:
        return {"kind": self.kind, **handler(self)}


def kinds(axis: str) -> list[str]:
    """The kinds of an axis (`tasks`, `data` or `methods`): the names of the files in its folder."""
    folder = Path(__file__).parent / axis
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def find_kind(axis: str, kind: str) -> type[Component]:
    """The class of a kind; raises RecipeError with the kinds there are."""
    if kind not in kinds(axis):
        raise RecipeError(f"no {kind!r} in tl_nlp.{axis}; there are: {', '.join(kinds(axis))}")
    module = importlib.import_module(f"tl_nlp.{axis}.{kind}")
    return getattr(module, "".join(part.capitalize() for part in kind.split("_")))


def as_component(axis: str, value: Any) -> Component:
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict):
        values = dict(value)
        kind = values.pop("kind", None)
        if kind is None:
            raise RecipeError(f"its kind is missing; there are: {', '.join(kinds(axis))}")
        return find_kind(axis, str(kind))(**values)
    if not isinstance(value, Component) or type(value).__module__ != f"tl_nlp.{axis}.{value.kind}":
        raise RecipeError(f"{value!r} is none of tl_nlp.{axis}; there are: {', '.join(kinds(axis))}")
    return value
