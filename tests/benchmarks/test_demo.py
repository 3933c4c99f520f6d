"""What the demo calls a fault, and how it tells."""

import dataclasses

import pytest

from benchmarks.demo import Pair, report

GOOD = Pair("bakery > clara", 6.4, 0.004, 3.2, 0.8, True, 0.51, 0.74)


def test_a_good_conversion_has_no_fault() -> None:
    assert GOOD.faults() == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"finite": False}, "no numbers"),
        ({"peak": 1.0}, "clipped"),
        ({"drift_s": 0.051}, "differs from its source by +51 ms; allowed are 50 ms"),
        ({"drift_s": -0.2}, "-200 ms"),
        ({"similarity_after": 0.51}, "no nearer to its target than the source did (0.51 before, 0.51 after)"),
    ],
)
def test_each_fault_is_named(change: dict[str, float], fault: str) -> None:
    (found,) = dataclasses.replace(GOOD, **change).faults()  # type: ignore[arg-type]  # the values fit their fields
    assert found.startswith("bakery > clara")
    assert fault in found


def test_the_report_has_a_line_for_each_pair() -> None:
    lines = report([GOOD, GOOD]).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == [
        "bakery",
        ">",
        "clara",
        "6.4",
        "s",
        "3.2",
        "s",
        "0.50",
        "0.51",
        "0.74",
        "0.80",
        "4.0",
        "ms",
    ]
