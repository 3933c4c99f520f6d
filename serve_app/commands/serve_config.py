"""A Serve config, checked before anything starts. Serve itself ignores keys that it does not know."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from configs.schema import ConfigError, load_preset, read_yaml
from configs.serve import ServeArgs
from serve_app.commands import UserMistake

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

APPLICATION = "serve_app.app:build"
FREE = {"args", "user_config", "runtime_env", "env_vars"}
"""Keys of Serve that may hold anything, as far as Serve goes."""
STAGES = ("Encoder", "Diffusion", "Vocoder")
SERVES_OWN = 5
"""The `max_ongoing_requests` that Serve gives a deployment which has none."""
Tree = dict[str, Any]


def read_config(path: Path) -> tuple[Tree, ServeDeploySchema]:
    """A config as it stands in its file, and as Serve takes it; UserMistake for the first thing that is wrong."""
    from ray.serve.schema import ServeDeploySchema

    tree = read_tree(path)
    if found := problems(tree):
        more = f" (and {len(found) - 1} more, which `seedvc check` lists)" if len(found) > 1 else ""
        raise UserMistake(f"{path}: {found[0]}{more}")
    return tree, ServeDeploySchema.model_validate(tree)


def read_tree(path: Path) -> Tree:
    """The config as it stands in its file; UserMistake where that holds no Serve config."""
    try:
        tree = read_yaml(path)
    except ConfigError as error:
        raise UserMistake(str(error)) from error
    if not isinstance(tree, dict) or not tree.get("applications"):
        raise UserMistake(f"{path} is no Serve config: it names no applications")
    return tree


def problems(tree: Tree) -> list[str]:
    """All that is wrong with a config, a sentence each: place, what came, what is allowed."""
    from ray.serve.schema import ServeDeploySchema

    found = [*unknown_keys(ServeDeploySchema, tree), *_invalid(ServeDeploySchema, tree)]
    options, applications = tree.get("http_options"), tree["applications"]
    if isinstance(options, dict) and isinstance(port := options.get("port"), int) and not 0 < port < 65536:
        found.append(f"http_options.port: is {port}; allowed are 1 to 65535")
    for number, application in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(application, dict) and application.get("import_path") == APPLICATION:
            found += _problems_in_args(application.get("args"), f"applications.{number}.args.")
    for number, application in enumerate(applications if not found else ()):
        if application["import_path"] == APPLICATION:
            found += _problems_between(application, f"applications.{number}.")
    return found


def unknown_keys(model: type[BaseModel], tree: Tree, place: str = "") -> list[str]:
    """Keys below `tree` that are no field of `model` or of the models inside it, each with the nearest that is."""
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    found = [
        f"{place}{key}: there is no such key; {_allowed(str(key), list(known))}" for key in tree if key not in known
    ]
    for key, inner, value in _inside(model, tree):
        found += unknown_keys(inner, value, f"{place}{key}.")
    return found


def _inside(model: type[BaseModel], tree: Tree) -> Iterator[tuple[str, type[BaseModel], Tree]]:
    """The parts of `tree` that another model describes, with their places."""
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, value in tree.items():
        if key not in known or key in FREE or (inner := _model_in(known[key])) is None:
            continue
        for number, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(item, dict):
                yield key if number is None else f"{key}.{number}", inner, item


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model that an annotation names: itself, in a union, a list or a dictionary."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for part in typing.get_args(annotation):
        if (model := _model_in(part)) is not None:
            return model
    return None


def _invalid(model: type[BaseModel], tree: Tree, place: str = "") -> Iterator[str]:
    """What a model refuses. What it takes as a bare dictionary is asked of the model that Serve reads it into later."""
    refused = False
    for key, inner, value in _inside(model, tree):
        for problem in _invalid(inner, value, f"{place}{key}."):
            refused = True
            yield problem
    if refused:
        return
    try:
        model.model_validate(tree)
    except ValidationError as error:
        for each in error.errors():
            if each["type"] != "extra_forbidden":
                yield _sentence(place, each)


def _sentence(place: str, error: Any) -> str:
    at = (place + ".".join(map(str, error["loc"]))).rstrip(".") or "top level"
    came = error["input"]
    is_ours = error["type"] == "value_error"  # which tells what came itself, or keeps a secret that is in it
    told = f" (it is {came!r:.80})" if isinstance(came, str | int | float | None) and not is_ours else ""
    return f"{at}: {error['msg'].removeprefix('Value error, ')}{told}"


def _allowed(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"the nearest is {near[0]}" if near else f"allowed are {', '.join(sorted(known))}"


def _problems_in_args(given: object, place: str) -> list[str]:
    """What is wrong with the arguments of an application of this project, each for itself."""
    if not isinstance(given, dict):  # none at all, or what Serve refuses
        return []
    if found := [*unknown_keys(ServeArgs, given, place), *_invalid(ServeArgs, given, place)]:
        return found
    try:
        load_preset(ServeArgs.model_validate(given).preset)
    except ConfigError as error:
        return [f"{place}preset: {error}"]
    return []


def _problems_between(application: Tree, place: str) -> list[str]:
    """Where arguments and deployments of an application of this project, each right by itself, cannot work together."""
    found = []
    args = ServeArgs.model_validate(application.get("args") or {})
    computing = {"Stages"} if args.together else set(STAGES)
    known = [*sorted(computing), "VoiceMaker", "Ingress"]
    deployments = {each["name"]: each for each in application.get("deployments") or ()}
    for name in deployments:
        if name not in known:
            why = "where together is set" if args.together else "unless together is set"
            hint = f"{why}, allowed are {', '.join(known)}" if name in (*STAGES, "Stages") else _allowed(name, known)
            found.append(f"{place}deployments: there is no deployment {name}; {hint}")
    if args.device != "cpu":
        for name in (*computing, "VoiceMaker"):
            if not (deployments.get(name, {}).get("ray_actor_options") or {}).get("num_gpus"):
                found.append(f"{place}deployments: {name} sees no GPU; device {args.device} needs its num_gpus")
    try:
        args.check_ongoing_requests(deployments.get("Ingress", {}).get("max_ongoing_requests", SERVES_OWN))
    except ConfigError as error:
        found.append(f"{place}deployments: {error}")
    return found
