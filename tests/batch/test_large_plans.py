"""Plans of very many units: what is made when its turn comes, and a log that is written in pieces."""

from __future__ import annotations

import pytest

from skllm_ray.batch.input.slices import InputFile, Units, cut
from skllm_ray.batch.job.planner import Calls, remaining_calls
from skllm_ray.batch.job.worker import Call
from skllm_ray.batch.output import output_state
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import UnitSummary
from skllm_ray.batch.storage import StorageOptions, open_folder

FILES = (
    InputFile("a.parquet", 10, 1, groups=(5, 5, 3), n_rows=13),
    InputFile("broken.csv", 10, 1, n_rows=0, error="no header"),
    InputFile("empty.parquet", 10, 1, groups=(0,), n_rows=0),
    InputFile("b.csv", 100, 2, index=(4,), n_rows=9),
)


def test_units_are_a_sequence_of_what_the_files_are_cut_into() -> None:
    units = Units(FILES, 4, cuts=[(3, 2)])
    assert list(units) == list(cut(FILES, 4, cuts=[(3, 2)])) == units[:]
    assert [units[i] for i in reversed(range(len(units)))] == list(reversed(units))
    assert sum(unit.n_rows for unit in units) == 22
    assert {(unit.number, unit.path) for unit in units} == {(0, "a.parquet"), (3, "b.csv")}
    assert not Units((), 4)
    with pytest.raises(IndexError):
        units[len(units)]


def test_calls_that_wait_are_made_when_their_turn_comes() -> None:
    units = Units(FILES, 4)
    calls = Calls([0, Call(units[1], resumes=True), 2], units)
    assert list(calls) == [Call(units[0]), Call(units[1], resumes=True), Call(units[2])]
    first = calls.popleft()
    assert first == Call(units[0])
    calls.appendleft(first)
    calls.extend([Call(units[3])])
    assert (calls[0], len(calls)) == (first, 4)
    assert [calls.popleft().unit for _ in range(4)] == units[:4]
    assert not calls


def test_a_log_in_pieces_tells_all_that_was_done(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_state, "_LINES", 3)
    output = open_folder(str(tmp_path), StorageOptions.of(None), {})
    units = Units((InputFile("a.parquet", 10, 1, groups=(1,) * 10, n_rows=10),), 1)
    state = OutputState(output, units)
    for unit in units:
        errors = {"rate_limit": 1} if unit.start == 4 else {}
        state.add(UnitSummary(unit=unit.key, file=unit.path, rows=1, errors=errors, started=5.0, model="m", size=1))
    state.save(force=True)
    assert len(output.below("_skllm_ray/done").names()) == 4
    for unit in units[:6]:
        (tmp_path / unit.part_name).write_bytes(b"x")
    again = OutputState(output, units)
    assert list(again.summaries) == [unit.key for unit in units[:6]]
    assert sorted(again.lost) == [unit.key for unit in units[6:]]
    assert again.summaries[units[4].key] == state.summaries[units[4].key]
    calls = remaining_calls(10, again, retry_before=5.1)
    assert [(call.unit.start, call.retries, call.before is None) for call in calls] == [
        (4, True, True), (6, False, False), (7, False, False), (8, False, False), (9, False, False),
    ]  # fmt: skip
    # What failed since a run with `retry_errors` began is not asked again by the watcher that goes on with it.
    assert [call.unit.start for call in remaining_calls(10, again, retry_before=5.0)] == [6, 7, 8, 9]
