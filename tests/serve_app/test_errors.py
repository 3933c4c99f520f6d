"""One translator: every named error has its answer, survives the way between processes, and nothing else is told."""

from __future__ import annotations

import pickle

import pytest

from serve_app.errors import (
    AtCapacity,
    BadUpload,
    FieldProblem,
    InvalidFields,
    InvalidVoiceId,
    NotStored,
    SourceTooLong,
    StoreAway,
    Unavailable,
    UploadStalled,
    UploadTooLarge,
    VoiceDamaged,
    VoiceExists,
    VoiceIsReadOnly,
    VoiceNotFound,
    first_cause,
    internal_error,
    refusal,
)
from stages.types import BadAudio
from webrtc.files import NotAudio

NAMED = [
    (BadUpload("no form"), 400),
    (VoiceIsReadOnly("clara"), 403),
    (VoiceNotFound("nobody"), 404),
    (VoiceDamaged("anna"), 404),
    (UploadStalled(60.0), 408),
    (VoiceExists("clara"), 409),
    (SourceTooLong(600.0), 413),
    (UploadTooLarge(1000), 413),
    (InvalidFields([FieldProblem(("body", "seed"), "too large", "value_error")]), 422),
    (BadAudio("silent", "the reference is silent"), 422),
    (NotAudio("not_audio", "this is text"), 422),
    (InvalidVoiceId("../x"), 422),
    (AtCapacity("full", 3), 429),
    (Unavailable("the stages did not answer"), 503),
    (StoreAway("the storage of voices does not answer"), 503),
    (NotStored("voices cannot be changed now: No space left on device"), 507),
]


@pytest.mark.parametrize(("error", "status_code"), NAMED, ids=[type(error).__name__ for error, _ in NAMED])
def test_a_named_error_has_its_answer_in_every_process(error: Exception, status_code: int) -> None:
    answer = refusal(error)
    assert answer is not None and answer.status_code == status_code
    assert ("Retry-After" in answer.headers) == (status_code in (429, 503))
    if status_code == 422:
        assert isinstance(answer.detail, list) and all(set(entry) == {"loc", "msg", "type"} for entry in answer.detail)
    else:
        assert isinstance(answer.detail, dict) and answer.detail["message"] == str(error)
    assert refusal(pickle.loads(pickle.dumps(error))) == answer


@pytest.mark.parametrize(
    "error", [ValueError("inside"), KeyError("inside"), OSError("inside"), AssertionError("inside")]
)
def test_an_error_of_ours_is_not_told(error: Exception) -> None:
    assert refusal(error) is None
    answer = internal_error("abc")
    assert answer.status_code == 500 and "abc" in str(answer.detail) and "inside" not in str(answer.detail)


def test_the_first_error_of_nested_groups_is_the_cause() -> None:
    cause = ValueError("first")
    group = BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [cause, KeyError()]), KeyError()])
    assert first_cause(group) is cause
