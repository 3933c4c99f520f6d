"""The time that fuzzers take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import budget


def numbers_tried(seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    tried: list[int] = []
    monkeypatch.setattr(budget, "SECONDS", seconds)

    @budget.budgeted(examples=10)
    @given(st.integers())
    def look(number: int) -> None:
        tried.append(number)

    look()
    return tried


def test_without_a_budget_the_same_few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    first = numbers_tried(0, monkeypatch)
    assert len(first) == 10 and numbers_tried(0, monkeypatch) == first


def test_with_a_budget_new_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = numbers_tried(0.3, monkeypatch), numbers_tried(0.3, monkeypatch)
    assert len(first) >= 100 and first[:100] != second[:100]
