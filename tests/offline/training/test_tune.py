from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from offline.data.writers import write_table
from offline.evaluation.compare import MODELS, Comparison, compare_models
from offline.simulation.simulator import Simulation, simulate
from offline.training.train import TrainingOptions, load_parameters
from offline.training.tune import Tuning, saved_share, tune
from stream.cli.commands.compare import compare_models as compare_command
from stream.cli.commands.tune import tune as command
from stream.errors import ConfigError, DataError

OPTIONS = TrainingOptions(trees=30, leaves=15)


@pytest.fixture(scope="module")
def table():
    return simulate(Simulation(transactions=8_000, seed=13, fraud_rate=0.05))


@pytest.fixture(scope="module")
def tuned(table):
    return tune(table, OPTIONS, Tuning(trials=4))


def test_tuning_is_reproducible_and_never_sees_the_test_part(table, tuned):
    from offline.training.split import split_by_time

    test = split_by_time(table).test
    other = dataclasses.replace(
        table, is_fraud=np.where(test, 1 - table.is_fraud, table.is_fraud).astype(np.int8)
    )
    assert tune(other, OPTIONS, Tuning(trials=4)) == tuned
    assert tuned.trials + tuned.pruned == 4
    assert tuned.average_precision > 0.2


def test_a_study_goes_on_where_it_was_stopped(tmp_path, table):
    study = tmp_path / "study.db"
    done = []
    tune(table, OPTIONS, Tuning(trials=2, study=study), progress=done.append)
    found = tune(table, OPTIONS, Tuning(trials=4, study=study), progress=done.append)
    assert len(done) == 4
    assert found.trials + found.pruned == 4
    again = tune(table, OPTIONS, Tuning(trials=4, study=study), progress=done.append)
    assert len(done) == 4
    assert again == found
    with pytest.raises(DataError, match="different inputs \\(frauds"):
        tune(
            dataclasses.replace(table, is_fraud=np.roll(table.is_fraud, 4_000)),
            OPTIONS,
            Tuning(trials=4, study=study),
        )


def test_a_model_that_costs_more_must_bring_more(table):
    cheap = tune(table, OPTIONS, Tuning(trials=4, size_price=0.0))
    dear = tune(table, OPTIONS, Tuning(trials=4, size_price=50.0))
    assert dear.leaves <= cheap.leaves
    assert cheap.objective == cheap.average_precision
    assert dear.objective == pytest.approx(dear.average_precision - 50.0 * dear.leaves / 10_000)


def test_the_command_writes_parameters_that_training_takes(tmp_path, table):
    write_table(table, tmp_path / "data.parquet")
    done = CliRunner().invoke(
        command,
        [
            "--data",
            str(tmp_path / "data.parquet"),
            "--trials",
            "1",
            "--trees",
            "20",
            "--output",
            str(tmp_path / "p"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert TrainingOptions(**load_parameters(tmp_path / "p")).leaves >= 2
    (tmp_path / "p").write_text('{"parameters": {"leaves": 1}}')
    with pytest.raises(ConfigError, match="leaves must lie in 2 to 1024"):
        load_parameters(tmp_path / "p")
    (tmp_path / "p").write_text('{"parameters": {"trees": 1}}')
    with pytest.raises(ConfigError, match="trees is not one of"):
        load_parameters(tmp_path / "p")


def test_every_model_is_judged_alike(table):
    result = compare_models(table, Comparison(OPTIONS, bootstrap=20, trials=1))
    assert list(result["models"]) == list(MODELS)
    for figures in result["models"].values():
        low, high = figures["confidence"]["recall"]
        assert low <= figures["recall"] <= high
        low, high = figures["confidence"]["auc"]
        assert low < figures["auc"] < high
        assert figures["frauds"] == result["models"]["shipped recipe"]["frauds"]
        assert sum(figures["confusion"].values()) == result["config"]["rows"]["test"]
    assert result["models"]["shipped recipe"]["auc"] > result["models"]["3-sigma rule"]["auc"] + 0.1


def test_the_command_compares_at_the_precision_asked_for(tmp_path, table):
    write_table(table, tmp_path / "data.parquet")
    done = CliRunner().invoke(
        compare_command,
        [
            *("--data", str(tmp_path / "data.parquet"), "--trials", "1", "--trees", "20"),
            *("--bootstrap", "5", "--precision", "0.5", "--json", str(tmp_path / "figures.json")),
        ],
    )
    assert done.exit_code == 0, done.output
    shipped = json.loads((tmp_path / "figures.json").read_bytes())["models"]["shipped recipe"]
    for text in (
        f"{shipped['auc']:.3f}",
        f"{shipped['confusion']['false_positive']:,}",
        "card precision@100",
    ):
        assert text in done.output


def test_the_share_saved_is_that_of_the_best_threshold():
    rng = np.random.default_rng(2)
    fraud = rng.random(60) < 0.3
    scores = np.round(rng.random(60) + fraud, 1)
    amounts = rng.uniform(1, 100, 60)
    every = [
        amounts[fraud & (scores >= edge)].sum() - 7.0 * (scores >= edge).sum() for edge in np.unique(scores)
    ]
    assert saved_share(fraud, scores, amounts, 7.0) == pytest.approx(max(every) / amounts[fraud].sum())
    assert saved_share(fraud, scores, amounts, 1e6) == 0.0
    assert saved_share(np.zeros(60, bool), scores, amounts, 1.0) == 0.0
