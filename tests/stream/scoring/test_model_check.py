"""A malformed model never reaches LightGBM: it ends no process and hangs none."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import lightgbm
import numpy as np
import pytest

from stream.scoring.model_check import MalformedModelError, checked_model_text
from support.bundles import made_bundle, trained_bundle
from support.paths import ROOT, SEARCH_PATH

#: Reads mutants of a model, one a line, and says what became of each; LightGBM's crash would end it.
PROGRAM = """
import json, sys
import lightgbm, numpy as np
from stream.scoring.model_check import MalformedModelError, checked_model_text
for line in sys.stdin:
    text, features = json.loads(line)
    try:
        booster = lightgbm.Booster(model_str=checked_model_text(text, features))
    except MalformedModelError as error:
        print("refused", error, flush=True)
    except lightgbm.basic.LightGBMError as error:
        print("refused by LightGBM", error, flush=True)
    else:
        rows = np.random.default_rng(1).normal(size=(50, features))
        print("loaded", booster.predict(rows).shape, booster.predict(rows, pred_contrib=True).shape, flush=True)
"""


def mutant(text: str, rng: random.Random) -> str:
    """Return the text with a few numbers, lines or characters changed."""
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(4)
        if kind == 0:
            numbers = list(re.finditer(r"-?\d+(\.\d+)?(e[+-]\d+)?", text))
            found = rng.choice(numbers)
            new = rng.choice(
                ["0", "-1", "1", "7", "99999", "-99999", "2147483648", "1e999", "nan", "", "1 1"]
            )
            text = text[: found.start()] + new + text[found.end() :]
        elif kind == 1:
            lines = text.split("\n")
            at = rng.randrange(len(lines))
            lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [rng.choice(lines)]])
            text = "\n".join(lines)
        elif kind == 2:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice("\n =x0-9\0\x80") + text[at + rng.randrange(3) :]
        else:
            text = text[: rng.randrange(len(text))]
    return text


def test_no_mutant_ends_or_hangs_the_process() -> None:
    models = [made_bundle(), trained_bundle()]
    rng = random.Random(3)
    lines = []
    for _ in range(400):
        made = rng.choice(models)
        lines.append(json.dumps([mutant(made.model_text, rng), len(made.spec.names)]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={"PYTHONPATH": SEARCH_PATH},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stdout.splitlines() if line.startswith(("loaded", "refused"))]
    assert len(said) == len(lines)
    assert sum(line.startswith("refused ") for line in said) > 100
    assert any(line.startswith("loaded") for line in said)


@pytest.mark.parametrize("which", ["made up", "trained", "categories", "one leaf", "random forest"])
def test_what_passes_scores_as_the_whole_text(which: str) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(400, 5))
    rows[:, 4] = rng.integers(0, 9, 400)
    labels = (rows[:, 0] + (rows[:, 4] > 4) > 0.5).astype(int)
    params = {"objective": "binary", "verbose": -1, "min_data_in_leaf": 5, "num_leaves": 12}
    if which == "random forest":
        params |= {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}
    if which == "one leaf":
        params |= {"min_data_in_leaf": 1_000}
    if which in {"made up", "trained"}:
        text = (made_bundle() if which == "made up" else trained_bundle()).model_text
    else:
        data = lightgbm.Dataset(rows, labels, categorical_feature=[4] if which == "categories" else [])
        text = lightgbm.train(params, data, 8).model_to_string()
    whole = lightgbm.Booster(model_str=text)
    checked = lightgbm.Booster(model_str=checked_model_text(text, whole.num_feature()))
    trial = rng.normal(size=(100, whole.num_feature()))
    np.testing.assert_array_equal(checked.predict(trial), whole.predict(trial))
    np.testing.assert_array_equal(
        checked.predict(trial, pred_contrib=True), whole.predict(trial, pred_contrib=True)
    )


def changed(name: str, value: str) -> str:
    text = made_bundle().model_text
    return re.sub(rf"^{name}=.*$", f"{name}={value}", text, count=1, flags=re.MULTILINE)


def with_child(index: int, value: str) -> str:
    """Return the model with another left child of a node of its first tree, of the same length."""
    text = made_bundle().model_text
    found = re.search(r"^left_child=(.*)$", text, re.MULTILINE)
    assert found is not None
    children = found[1].split(" ")
    assert len(children[index]) == len(value)
    children[index] = value
    return text[: found.start(1)] + " ".join(children) + text[found.end(1) :]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "header does not end"),
        (changed("num_class", "3"), "num_class=3"),
        (changed("objective", "regression"), "objective=regression"),
        (changed("tree_sizes", "1 2 3"), "tree 0 is not where tree_sizes says"),
        (with_child(0, "0"), "two parents"),
        (changed("max_feature_idx", "3"), "takes 4 features"),
        (made_bundle().model_text.replace("end of trees", "end of", 1), "do not end"),
    ],
)
def test_the_error_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(MalformedModelError, match=says):
        checked_model_text(text, len(made_bundle().spec.names))
