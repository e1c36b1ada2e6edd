"""Small real bundles: a model trained on a simulated file, and models of any spec."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

import lightgbm
import numpy as np

from offline.simulation.simulator import Simulation, simulate
from offline.training.train import TrainingOptions, train
from stream.features.spec import FeatureSpec
from stream.scoring.bundle import Bundle, Thresholds
from support.run_folder import locked, run_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from offline.data.table import TransactionTable
    from stream.features.profiles.spec import EntityProfile

#: Every user's history spans the file, so that a model has something to learn from it.
SIMULATION = Simulation(transactions=6_000, users=60, seed=11, fraud_rate=0.03)


@cache
def simulated() -> TransactionTable:
    return simulate(SIMULATION)


@cache
def trained_bundle() -> Bundle:
    """Return a model that has learnt something; the same in every run, and trained once in each."""
    folder = run_folder()
    if folder is None:
        return _train()
    with locked(folder, "trained"):
        if not (folder / "trained").exists():
            _train().save(folder / "being-trained")
            (folder / "being-trained").rename(folder / "trained")
    return Bundle.load(folder / "trained")


def _train() -> Bundle:
    options = TrainingOptions(trees=40, leaves=15, min_leaf_rows=10)
    return train(simulated(), options, now=datetime(2026, 6, 1, tzinfo=UTC)).bundle


def model_text(features: int, params: Mapping[str, object] | None = None) -> str:
    """Return a model of random rows and labels, of a binary objective unless ``params`` say otherwise."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, features))
    settings = {
        "objective": "binary",
        "verbose": -1,
        "num_threads": 1,
        "min_data_in_leaf": 5,
        **(params or {}),
    }
    labels = rng.integers(0, settings.get("num_class", 2), 200)
    text: str = lightgbm.train(settings, lightgbm.Dataset(rows, labels), 3).model_to_string()
    return text


def made_bundle(
    numeric_attributes: tuple[str, ...] = (),
    categorical_attributes: Mapping[str, tuple[str, ...]] | None = None,
    thresholds: Thresholds | None = None,
    entities: tuple[EntityProfile, ...] = (),
) -> Bundle:
    """Return a bundle of a made-up model for a spec with these attributes and profiles."""
    texts = dict(categorical_attributes or {})
    spec = FeatureSpec(
        {"channel": ("web", "pos"), "transaction_type": ("purchase",), **texts},
        numeric_attributes,
        tuple(texts),
        entities,
    )
    return Bundle(model_text(len(spec.names)), "made-up-1", spec, thresholds or Thresholds())
