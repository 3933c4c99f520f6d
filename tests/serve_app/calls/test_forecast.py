"""What a machine carries, by the time that a block takes on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs import load_preset
from configs.schema import LiveSettings
from serve_app.calls.forecast import Measured, forecast, forecasts, remedies
from serve_app.cli import main
from serve_app.commands.check import in_short, told_of_calls
from stages.timing import Spread

LIVE = load_preset("tiny").live


def machine(cores: int, alone_ms: float, at_once_ms: float | None = None) -> Measured:
    """A block takes a fifth longer in five of a hundred; the diffusion has half of it."""
    at_once_ms = at_once_ms or alone_ms
    stages_ms = {"encoder": alone_ms / 4, "diffusion": alone_ms / 2, "vocoder": alone_ms / 4}
    return Measured(cores, Spread(alone_ms, 1.2 * alone_ms), Spread(at_once_ms, 1.2 * at_once_ms), stages_ms)


def test_the_two_cores_of_the_readme_carry_two_calls_and_one_beside_a_browser() -> None:
    lowest, constant = forecasts(machine(2, 42, 52), LIVE)
    assert (lowest.block_ms, lowest.calls, lowest.beside_page, lowest.beside_recording) == (120, 2, 1, 1)
    assert constant.block_ms == 180 and constant.calls > lowest.calls


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
def test_slower_blocks_and_fewer_cores_never_carry_more(cores: int) -> None:
    carried = [forecast(machine(cores, ms), 120, 240) for ms in (10, 20, 40, 80, 160, 320)]
    assert [each.calls for each in carried] == sorted((each.calls for each in carried), reverse=True)
    assert carried[0].calls > 0 and carried[-1].calls == 0
    for each in carried:
        assert 0 <= each.beside_recording <= each.beside_page <= each.calls
        assert each.calls <= forecast(machine(2 * cores, 10), 120, 240).calls


def test_a_block_that_misses_its_deadline_carries_nothing_however_many_cores() -> None:
    assert forecast(machine(64, 230), 120, 240).calls == 0
    assert forecast(machine(64, 230), 120, 320).calls > 0


def test_nothing_is_to_be_changed_where_both_modes_carry_a_call() -> None:
    assert remedies(machine(2, 42), LIVE) == []


def test_what_to_change_is_told_with_values_that_then_work() -> None:
    slow = machine(1, 150)
    (told,) = remedies(slow, LIVE)
    block_ms = next(ms for ms in range(120, 2000, 20) if f"{{block_ms: {ms}, deadline_ms: {2 * ms}}}" in told)
    assert forecast(slow, block_ms, 2 * block_ms).calls == 1
    assert forecast(slow, block_ms - 20, 2 * block_ms - 40).calls == 0
    LIVE.check_block(block_ms)


def test_fewer_steps_and_busy_cores_are_told() -> None:
    steps = LiveSettings.model_validate(LIVE.model_dump() | {"steps": 10})
    told = " ".join(remedies(machine(2, 90, 160), steps))
    assert "two blocks at once take 1.8 times as long" in told
    assert "steps in place of 10" in told


def test_a_hopeless_machine_is_told_so() -> None:
    (told,) = remedies(machine(1, 30000), LIVE)
    assert "recordings are converted all the same" in told
    assert "too slow or too busy" in in_short(machine(1, 30000), LIVE, 2)


def test_sentences_hold_the_numbers() -> None:
    told = told_of_calls(machine(2, 42, 52), LIVE)
    assert "One block takes 42 ms by itself, 95 of 100 at most 50 ms." in told
    assert any(line.startswith("Blocks of 120 ms: 2 calls; 1 call beside the page") for line in told)
    assert "rtc.max_calls lets in 8" in in_short(machine(2, 42, 52), LIVE, 8)
    assert "max_calls" not in in_short(replace(machine(2, 42, 52), cores=64), LIVE, 8)


@pytest.mark.e2e
def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.commands.machine.BLOCKS", 5)
    assert main(["check", "--machine"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("The processor is ")
    assert any(line.startswith("One block takes ") for line in told)
    assert sum(line.startswith("Blocks of ") for line in told) == 2
