"""What requests and answers say beside their bodies: form fields, headers, their description for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.types import Scope

from serve_app.errors import FieldProblem, InvalidFields

MODEL_IDS = ("seedvc", "eleven_english_sts_v2", "eleven_multilingual_sts_v2")
"""Our one model, and the names that ElevenLabs clients call it by."""


def known_model(model_id: str) -> str:
    """The id itself where it names the model; for pydantic."""
    if model_id not in MODEL_IDS:
        raise ValueError(f"unknown model; allowed are {', '.join(MODEL_IDS)}")
    return model_id


def parse_fields(form: type[BaseModel], texts: Mapping[str, str]) -> Any:
    """The form's fields out of their texts; the ElevenLabs SDK sends `null` for one that is not set."""
    given = {name: text for name, text in texts.items() if text not in ("", "null")}
    try:
        return form.model_validate(given)
    except ValidationError as error:
        raise InvalidFields([FieldProblem(("body", *p["loc"]), p["msg"], p["type"]) for p in error.errors()]) from error


def form_schema(form: type[BaseModel], **files: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a form that is taken apart by hand."""
    schema = form.model_json_schema()
    schema["properties"] = {**schema["properties"], **files}
    schema["required"] = [*schema.get("required", []), *files]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def header(scope: Scope, name: bytes) -> str:
    """A request header's value, empty where it is missing."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def one_line(text: str) -> str:
    """Text that a header can carry."""
    return " ".join(text.split()).encode("ascii", errors="replace").decode("ascii")
