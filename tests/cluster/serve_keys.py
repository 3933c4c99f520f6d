"""Keys of a Serve config that Ray's schema does not know: Ray itself drops them in silence."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig

# Declared as a bare dictionary in Ray's schema, and read into this model later.
UNTYPED = {"autoscaling_config": AutoscalingConfig}
FREE = {"args", "user_config", "runtime_env", "env_vars"}


def unknown_keys(model: type[BaseModel], tree: dict[str, Any], place: str = "") -> list[str]:
    """Dotted places of all keys below `tree` that are no field of `model` or of the models inside it."""
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    found = [f"{place}{key}" for key in tree if key not in known]
    for key, value in tree.items():
        if key not in known or key in FREE:
            continue
        inner = UNTYPED.get(key) or _model_in(known[key])
        if inner is None:
            continue
        if isinstance(value, dict):
            found += unknown_keys(inner, value, f"{place}{key}.")
        elif isinstance(value, list):
            for i, item in enumerate(value):
                found += unknown_keys(inner, item, f"{place}{key}.{i}.")
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model that an annotation names: itself, in a union, a list or a dictionary."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for part in typing.get_args(annotation):
        if (model := _model_in(part)) is not None:
            return model
    return None
