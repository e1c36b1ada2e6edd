from __future__ import annotations

import dataclasses

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.data.table import Labels
from offline.replay import Pacing, ReplayReport, count_labels, table_records
from offline.simulation.simulator import Simulation, simulate
from stream.cli.options import DURATION, parse_duration
from stream.errors import ConfigError, InvalidRecordError
from stream.events.decode import decode_label, decode_transaction
from stream.settings import TopicSettings

TOPICS = TopicSettings()


@given(st.floats(0.1, 1e6), st.integers(0, 10**6))
def test_a_rate_is_an_even_schedule(rate, index):
    assert Pacing(rate=rate).due_seconds(index, 5, 0) == pytest.approx(index / rate)


@given(st.floats(0.1, 1e6), st.integers(0, 10**9), st.integers(-(10**6), 10**9))
def test_a_speed_follows_the_event_times(speed, first, offset):
    due = Pacing(speed=speed).due_seconds(3, first + offset, first)
    assert due == pytest.approx(max(0, offset) / 1000 / speed)


def test_without_pacing_all_is_due_at_once():
    assert Pacing().due_seconds(10**6, 10**9, 0) == 0


@pytest.mark.parametrize(
    "wrong", [{"rate": 1, "speed": 1}, {"rate": 0}, {"speed": -1}, {"rate": float("inf")}]
)
def test_wrong_pacing_is_refused(wrong):
    with pytest.raises(ConfigError):
        Pacing(**wrong)


def test_records_are_the_transactions_in_order():
    table = simulate(Simulation(transactions=300, seed=1))
    records = list(table_records(table, TOPICS))
    assert {record.topic for record in records} == {"transactions"}
    decoded = [decode_transaction(record.value)[0] for record in records]
    assert [item.transaction_id for item in decoded] == table.transaction_id.tolist()
    assert all(record.key == item.user_id.encode() for record, item in zip(records, decoded, strict=True))
    assert [record.event_time_ms for record in records] == table.event_time_ms.tolist()


def test_labels_are_sent_when_they_become_known():
    table = simulate(Simulation(transactions=2_000, seed=1))
    records = list(table_records(table, TOPICS, labels=True))
    labels = [record for record in records if record.topic == "labels"]
    assert len(records) - len(labels) == len(table)
    assert len(labels) == count_labels(table)
    assert 0 < len(labels) < len(table)
    times = [record.event_time_ms for record in records]
    assert times == sorted(times)
    truth = dict(zip(table.transaction_id.tolist(), (table.is_fraud == 1).tolist(), strict=True))
    for record in labels:
        label = decode_label(record.value)[0]
        assert label.is_fraud == truth[label.transaction_id]
        assert label.label_time == record.event_time_ms > label.event_time


def test_a_label_and_its_correction_are_both_sent():
    table = simulate(Simulation(transactions=2_000, seed=1))
    first = int(np.argmin(table.label_time_ms))
    time_ms = int(table.label_time_ms[first])
    table = table.with_labels(
        Labels(np.array([first]), 1 - table.is_fraud[[first]], np.array([time_ms + 86_400_000]))
    )
    records = list(table_records(table, TOPICS, labels=True))
    found = [decode_label(record.value)[0] for record in records if record.topic == "labels"]
    assert len(found) == count_labels(table)
    mine = [label for label in found if label.transaction_id == table.transaction_id[first]]
    assert [label.label_time - time_ms for label in mine] == [0, 86_400_000]
    assert mine[0].is_fraud != mine[1].is_fraud


def test_labels_follow_the_highest_event_time_of_an_unsorted_file():
    table = simulate(Simulation(transactions=1_000, seed=1)).take(np.random.default_rng(1).permutation(1_000))
    clock, waiting, sent = -1, [], 0
    for record in table_records(table, TOPICS, labels=True):
        if record.topic == "labels":
            waiting.append(record.event_time_ms)
            continue
        before, clock = clock, max(clock, record.event_time_ms)
        assert all(before < label_time <= clock for label_time in waiting)
        sent += len(waiting)
        waiting.clear()
    assert not waiting
    assert sent == count_labels(table) > 0


def test_unknown_labels_and_invalid_rows_are_not_sent():
    table = simulate(Simulation(transactions=500, seed=1))
    labels = table.is_fraud.copy()
    labels[:] = -1
    unknown = dataclasses.replace(
        table, is_fraud=labels, invalid={3: InvalidRecordError("amount", "is required")}
    )
    records = list(table_records(unknown, TOPICS, labels=True))
    assert len(records) == 499
    assert count_labels(unknown) == 0


def test_a_report_has_a_rate():
    report = ReplayReport({"transactions": 90, "labels": 10}, 1, seconds=2.0, late_seconds=0.0, stopped=False)
    assert report.rate == 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3d", 259_200_000),
        ("12h", 43_200_000),
        ("30m", 1_800_000),
        ("45s", 45_000),
        ("1.5H", 5_400_000),
        ("0s", 0),
    ],
)
def test_durations(text, expected):
    assert parse_duration(text) == expected
    assert DURATION.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["3", "d", "-1d", "3w", "1d2h", "", "nan d"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)
