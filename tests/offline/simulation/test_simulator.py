from __future__ import annotations

import hashlib

import numpy as np
import pytest

from offline.data.writers import write_table
from offline.evaluation.baselines import measure_difficulty
from offline.simulation.simulator import Simulation, simulate
from stream.errors import ConfigError
from stream.events.decode import decode_transaction

INCOMING = {"transfer_in", "salary", "refund"}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_table(simulate(Simulation(transactions=2_000, seed=seed)), tmp_path / f"{name}.jsonl")
    assert digest(tmp_path / "a.jsonl") == digest(tmp_path / "b.jsonl")
    assert digest(tmp_path / "a.jsonl") != digest(tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    ("rows", "rate", "users", "days"), [(5_000, 0.02, None, 120), (1_000, 0.1, 30, 20), (500, 0.0, 10, 2)]
)
def test_rows_and_rate_are_hit(rows, rate, users, days):
    table = simulate(Simulation(transactions=rows, fraud_rate=rate, users=users, days=days, seed=4))
    assert len(table) == rows
    assert not table.invalid
    assert int((table.is_fraud == 1).sum()) == round(rows * rate)
    assert len(set(table.transaction_id.tolist())) == rows
    assert (np.diff(table.event_time_ms) >= 0).all()
    assert np.ptp(table.event_time_ms) < days * 86_400_000


def test_balances_add_up():
    table = simulate(Simulation(transactions=20_000, seed=2))
    incoming = np.isin(table.transaction_type.astype(str), sorted(INCOMING))
    change = np.where(incoming, table.amount_minor, -table.amount_minor)
    assert (table.pre_balance_minor + change == table.post_balance_minor).all()
    assert (table.post_balance_minor >= 0).all()
    last: dict[str, int] = {}
    for user, before, after in zip(
        table.user_id.tolist(),
        table.pre_balance_minor.tolist(),
        table.post_balance_minor.tolist(),
        strict=True,
    ):
        assert last.get(user, before) == before
        last[user] = after


def test_every_row_is_a_valid_transaction():
    table = simulate(Simulation(transactions=3_000, seed=6))
    decoded = [decode_transaction(value) for _, value in table.to_records()]
    assert len(decoded) == 3_000
    assert {unknown for _, unknown in decoded} == {0}


def test_labels_come_later_by_about_the_delay():
    table = simulate(Simulation(transactions=5_000, seed=6))
    days = (table.label_time_ms - table.event_time_ms) / 86_400_000
    assert (days > 0).all()
    assert 6.5 < days.mean() < 7.5
    assert days.std() > 1


@pytest.mark.parametrize("wrong", [{"transactions": 5}, {"fraud_rate": 0.9}, {"users": 1}, {"days": 1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        Simulation(**wrong)


def test_no_simple_rule_solves_it_and_history_helps():
    table = simulate(Simulation(transactions=40_000, seed=21))
    auc = {name: figures["auc"] for name, figures in measure_difficulty(table, allowed_lateness_ms=0).items()}
    assert 0.58 < auc["three_sigma"] < 0.85
    assert 0.75 < auc["raw_columns"] < 0.92
    assert auc["history"] > 0.91
    assert auc["history"] > auc["raw_columns"] + 0.03
