from __future__ import annotations

import json
import math
import re
import string

import numpy as np
import pytest

from stream.decisions.reasons import Explainer
from stream.decisions.sentences import LANGUAGES, load_templates
from stream.events.records import ConsumerRecord
from stream.features.profiles.spec import (
    ACTIVITY_AGGREGATES,
    ENTITIES,
    LABEL_AGGREGATES,
    LABEL_RECENCY,
    EntityProfile,
)
from stream.features.spec import FeatureSpec
from stream.pipeline.effects import Batch
from stream.pipeline.transactions import TransactionPipeline
from stream.runtime.wiring import pipeline_config
from stream.settings import Settings
from support.bundles import simulated, trained_bundle
from support.histories import Memory

SPEC = FeatureSpec(
    {"channel": ("web",), "transaction_type": ("purchase",)},
    ("age",),
    (),
    tuple(
        EntityProfile(
            entity,
            windows_days=(0.5, 1.0, 7.0, 30.0),
            aggregates=ACTIVITY_AGGREGATES,
            usual_days=90.0,
            label_windows_days=(7.0, 40.0),
            # The user's own frauds against the user's usual amount: that is another profile's to give.
            label_aggregates=LABEL_AGGREGATES[: 3 if entity == "user" else 4],
            label_recency=LABEL_RECENCY,
        )
        for entity in ENTITIES
    ),
)

OWN_WORDS = {"UTC", "IP", "web", "purchase", "age"}


def explain(values: dict[str, float], name: str, language: str, *, rest: float = 2.0):
    row = np.array([values.get(known, rest) for known in SPEC.names])
    moved = np.array([*(float(known == name) for known in SPEC.names), -3.0])
    (reason,) = Explainer(SPEC, 3, language).reasons(row, moved)
    return reason


def test_every_language_has_the_same_templates_with_fields_that_are_filled():
    def fields(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    english = load_templates("en")
    for language in LANGUAGES:
        other = load_templates(language)
        assert list(other) == list(english)
        for key, text in other.items():
            # A figure that one language tells, the other tells too.
            assert fields(text) - {"mean", "span"} == fields(english[key]) - {"mean", "span"}, key
        assert len(other["weekdays"].split()) == 7


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_feature_has_a_sentence_of_its_language(language):
    for name in SPEC.names:
        for value in (math.nan, 0.0, 1.0, 3.0, 0.25, 1e6):
            shown = min(6.0, value) if name == "day_of_week" else value
            reason = explain({name: shown}, name, language)
            json.dumps(reason, allow_nan=False)
            assert "{" not in reason["sentence"]
            assert "nan" not in reason["sentence"]
            chinese = any("\u4e00" <= letter <= "\u9fff" for letter in reason["sentence"])
            assert chinese == (language == "zh"), reason["sentence"]
            if chinese and not math.isnan(shown):
                # Nothing is left over in the other language but what is the data's own.
                assert set(re.findall("[A-Za-z]+", reason["sentence"])) <= OWN_WORDS, reason["sentence"]


@pytest.mark.parametrize(
    ("name", "value", "english", "chinese"),
    [
        (
            "merchant_fraud_count_7d",
            1.0,
            "1 fraud with this merchant was confirmed in the last 7 days",
            "该商户最近7天确认了1笔欺诈",
        ),
        (
            "user_amount_to_median_30d",
            4.2,
            "the amount is 4.2 times this user's median in the last 30 days",
            "金额是该用户最近30天中位数的4.2倍",
        ),
        ("device_count_1d", 3.0, "3 transactions of this device in the last day", "该设备最近1天有3笔交易"),
        (
            "merchant_days_since_last_fraud",
            9.0,
            "the last known fraud with this merchant was 9 days ago",
            "该商户最近一笔已知欺诈发生在9天前",
        ),
        (
            "ip_fraud_amount_min",
            math.nan,
            "no fraud of this IP address is known in the last 40 days",
            "最近40天该IP地址没有已确认的欺诈",
        ),
        (
            "seconds_since_previous",
            171.0,
            "3 minutes after the previous transaction, usually 15 days",
            "距上一笔交易3分钟，通常间隔15天",
        ),
    ],
)
def test_sentences_say_what_the_figures_are(name, value, english, chinese):
    assert explain({name: value}, name, "en")["sentence"] == english
    assert explain({name: value}, name, "zh")["sentence"] == chinese


def test_an_amount_is_told_against_the_users_own_mean():
    values = {"amount": 4_980.0, "amount_to_mean_30d": 11.0}
    said = explain(values, "amount", "en")
    assert said["sentence"] == "amount 4,980.00 is 11.0 times this user's 30-day mean of 452.73"
    assert said["usual"] == 452.7273
    assert explain(values, "amount", "zh")["sentence"] == "金额4,980.00是该用户30天均值452.73的11.0倍"


def test_alerts_speak_the_language_of_the_settings_and_differ_in_nothing_else():
    bundle, now_ms = trained_bundle(), 1_790_000_000_000
    records = [
        ConsumerRecord(at, now_ms, key, value)
        for at, (key, value) in enumerate(simulated().to_records(range(800)))
    ]
    alerts = {}
    for language in LANGUAGES:
        config = pipeline_config(Settings(_env_file=None, language=language, alert_level="LOW"), bundle)
        effects = TransactionPipeline(bundle, config).process(
            Batch("transactions", 0, 1, records), Memory(), now_ms
        )
        alerts[language] = [json.loads(message.value) for message in effects.alerts]
    assert len(alerts["en"]) == len(records)
    said = {
        language: [reason.pop("sentence") for alert in found for reason in alert["reasons"]]
        for language, found in alerts.items()
    }
    assert alerts["en"] == alerts["zh"]
    assert len(said["en"]) > len(records)
    assert all(sentence.isascii() for sentence in said["en"])
    assert all(re.search("[\u4e00-\u9fff]", sentence) for sentence in said["zh"])
