"""A bundle comes back as it was, or is refused in one readable line."""

from __future__ import annotations

import hashlib
import json
import pickletools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stream.errors import BundleError
from stream.features.spec import SPEC_VERSION, FeatureSpec
from stream.scoring.bundle import BUNDLE_FORMAT, Bundle, Thresholds
from stream.scoring.manifest import make_manifest
from stream.scoring.predictor import Predictor
from support.bundles import made_bundle, model_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    change(meta)
    path.write_text(json.dumps(meta), encoding="utf-8")
    make_fit(folder)


def make_fit(folder: Path) -> None:
    """Write the manifest of the members as they are now."""
    members = {name: (folder / name).read_bytes() for name in ("bundle.json", "model.txt")}
    (folder / "manifest.json").write_bytes(make_manifest(members))


# --- round trip ----------------------------------------------------------------------------------------


def test_it_comes_back_whole(bundle: Bundle, folder: Path) -> None:
    loaded = Bundle.load(folder)
    assert loaded == bundle
    assert loaded.spec.hash == bundle.spec.hash
    assert loaded.spec.names == bundle.spec.names
    rows = np.random.default_rng(3).normal(size=(50, len(bundle.spec.names)))
    np.testing.assert_array_equal(Predictor(loaded).scores(rows), Predictor(bundle).scores(rows))
    np.testing.assert_array_equal(
        Predictor(loaded).contributions(rows), Predictor(bundle).contributions(rows)
    )


def test_attributes_and_thresholds_come_back(tmp_path: Path) -> None:
    made = made_bundle(
        ("age",), {"device": ("ios", "ändroid")}, Thresholds(high=0.9, medium=0.2, prediction=0.4)
    )
    made.save(tmp_path)
    assert Bundle.load(tmp_path) == made


def test_saving_again_replaces_and_leaves_nothing_else(bundle: Bundle, folder: Path) -> None:
    made = made_bundle()
    made.save(folder)
    assert Bundle.load(folder) == made
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "manifest.json", "model.txt"]


def test_nothing_in_it_can_execute(folder: Path) -> None:
    for path in folder.iterdir():
        content = path.read_bytes()
        content.decode()  # text
        with pytest.raises(ValueError):  # noqa: PT011 - pickletools has no error of its own
            list(pickletools.genops(content))
        assert not path.stat().st_mode & 0o111
    json.loads((folder / "bundle.json").read_bytes())


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["bundle.json", "manifest.json", "model.txt"])
def test_a_missing_file_is_named_with_what_to_do(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    text = refused(lambda: Bundle.load(folder))
    assert missing in text
    assert str(folder) in text
    assert "riskstream train" in text
    assert "RISKSTREAM_BUNDLE" in text


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    assert "riskstream train" in refused(lambda: Bundle.load(tmp_path / "none"))


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "model.txt").unlink()
    (folder / "model.txt").mkdir()
    assert "cannot be read" in refused(lambda: Bundle.load(folder))


@pytest.mark.parametrize("name", ["bundle.json", "model.txt"])
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_changed_byte_of_a_member_is_noticed(folder: Path, place: str, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[{"start": 0, "middle": len(content) // 2, "end": -1}[place]] ^= 1
    path.write_bytes(content)
    assert f"damaged: {name} does not match its SHA-256" in refused(lambda: Bundle.load(folder))


def test_a_model_cut_short_is_noticed(folder: Path) -> None:
    path = folder / "model.txt"
    path.write_bytes(path.read_bytes()[:-1])
    assert "SHA-256" in refused(lambda: Bundle.load(folder))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("format", BUNDLE_FORMAT + 1, f"has format {BUNDLE_FORMAT + 1}, not {BUNDLE_FORMAT}"),
        ("format", None, "has format None"),
        ("feature_spec_hash", "0" * 16, "does not match its hash"),
        ("feature_spec", [], "cannot be used"),
        ("thresholds", {"high": 0.2, "medium": 0.3, "prediction": 0.5}, "thresholds must satisfy"),
        ("thresholds", {"high": 0.7, "medium": 0.3, "prediction": 1.5}, "prediction threshold"),
        ("thresholds", {"high": "0.7", "medium": 0.3, "prediction": 0.5}, "cannot be used"),
        ("thresholds", {"highest": 0.7}, "cannot be used"),
        ("thresholds", {"high": float("nan"), "medium": 0.3, "prediction": 0.5}, "thresholds must satisfy"),
        ("allowed_lateness_ms", "three days", "cannot be used"),
        ("allowed_lateness_ms", -1, "cannot be used"),
    ],
)
def test_a_wrong_member_is_refused(folder: Path, key: str, value: object, says: str) -> None:
    rewrite(folder, lambda meta: meta.update({key: value}))
    assert says in refused(lambda: Bundle.load(folder))


@pytest.mark.parametrize(
    "key",
    [
        "format",
        "model_version",
        "feature_spec",
        "feature_spec_hash",
        "thresholds",
        "allowed_lateness_ms",
        "reference",
        "metrics",
        "training",
    ],
)
def test_a_missing_member_is_named(folder: Path, key: str) -> None:
    rewrite(folder, lambda meta: meta.pop(key))
    assert key in refused(lambda: Bundle.load(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"{}"])
def test_what_is_no_bundle_is_refused(folder: Path, content: bytes) -> None:
    (folder / "bundle.json").write_bytes(content)
    make_fit(folder)
    assert str(folder) in refused(lambda: Bundle.load(folder))


def test_a_spec_of_another_version_is_refused(folder: Path) -> None:
    rewrite(folder, lambda meta: meta["feature_spec"].update(version=SPEC_VERSION + 1))
    text = refused(lambda: Bundle.load(folder))
    assert f"version {SPEC_VERSION + 1} is not {SPEC_VERSION}, the version that this program computes" in text


@pytest.mark.parametrize("change", ["swap", "drop", "add"])
def test_a_spec_with_other_features_is_refused(folder: Path, change: str) -> None:
    def doctor(meta: dict[str, Any]) -> None:
        names = meta["feature_spec"]["features"]
        if change == "swap":
            names[0], names[1] = names[1], names[0]
        elif change == "drop":
            names.pop()
        else:
            names.append("shoe_size")

    rewrite(folder, doctor)
    assert "features differ from the features that this program computes" in refused(
        lambda: Bundle.load(folder)
    )


def test_other_categories_are_another_spec(folder: Path) -> None:
    rewrite(folder, lambda meta: meta["feature_spec"]["categories"]["channel"].reverse())
    assert "does not match its hash" in refused(lambda: Bundle.load(folder))


# --- models that cannot be served ----------------------------------------------------------------------


def with_model(text: str) -> Bundle:
    return Bundle(text, "made-up-1", made_bundle().spec)


def test_a_model_of_other_features_is_refused() -> None:
    count = len(made_bundle().spec.names)
    text = refused(lambda: Predictor(with_model(model_text(count + 1))))
    assert f"takes {count + 1} features, but its feature spec has {count}" in text


@pytest.mark.parametrize(
    "params",
    [
        {"objective": "regression"},
        {"objective": "multiclass", "num_class": 3},
        {"objective": "cross_entropy"},
    ],
)
def test_a_model_that_is_not_binary_is_refused(params: dict[str, object]) -> None:
    text = refused(lambda: Predictor(with_model(model_text(len(made_bundle().spec.names), params))))
    assert "not a LightGBM model of a binary objective" in text


@pytest.mark.parametrize(
    "content",
    ["", "tree\n", "not a model", "tree\nobjective=binary\n", "tree\nobjective=binary\n\nTree=0\nx"],
)
def test_a_model_that_lightgbm_cannot_read_is_refused(
    content: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its SHA-256 is right: it was saved like that."""
    with_model(content).save(tmp_path)
    loaded = Bundle.load(tmp_path)
    assert "made-up-1" in refused(lambda: Predictor(loaded))
    assert capfd.readouterr().out == ""


def test_a_score_is_the_booster_s_own(bundle: Bundle) -> None:
    import lightgbm

    rows = np.random.default_rng(4).normal(size=(64, len(bundle.spec.names)))
    rows[rng_mask(rows)] = np.nan
    expected = lightgbm.Booster(model_str=bundle.model_text).predict(rows)
    np.testing.assert_array_equal(Predictor(bundle).scores(rows), expected)
    assert Predictor(bundle).scores(rows[:0]).shape == (0,)
    contributions = Predictor(bundle).contributions(rows)
    np.testing.assert_allclose(1 / (1 + np.exp(-contributions.sum(axis=1))), expected, rtol=1e-12)
    assert Predictor(bundle).contributions(rows[:0]).shape == (0, len(bundle.spec.names) + 1)


def rng_mask(rows: np.ndarray) -> np.ndarray:
    return np.random.default_rng(5).random(rows.shape) < 0.2


# --- specs ---------------------------------------------------------------------------------------------


def test_the_hash_changes_with_whatever_matters() -> None:
    def spec(
        channels: tuple[str, ...] = ("web", "pos"), numeric: tuple[str, ...] = ("a", "b")
    ) -> FeatureSpec:
        return FeatureSpec({"channel": channels, "transaction_type": ()}, numeric)

    hashes = [
        spec().hash,
        spec(channels=("pos", "web")).hash,
        spec(channels=("web",)).hash,
        spec(numeric=("b", "a")).hash,
        spec(numeric=("a",)).hash,
        FeatureSpec({"channel": ("web", "pos"), "transaction_type": ()}, ("a", "b"), version=9).hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert spec().hash == hashes[0]
    assert hashlib.sha256(b"").hexdigest()[:16] not in hashes


def test_categories_must_be_those_of_the_columns() -> None:
    with pytest.raises(ValueError, match="categories must be given for exactly"):
        FeatureSpec({"channel": ()})


def test_a_number_whose_name_ends_like_a_code_is_no_category() -> None:
    spec = FeatureSpec({"channel": (), "transaction_type": (), "device": ()}, ("merchant_code",), ("device",))
    assert spec.categorical == ("channel_code", "transaction_type_code", "attributes.device_code")


@pytest.mark.parametrize("name", ["channel", "transaction_type"])
def test_a_text_named_like_a_column_is_refused(name: str) -> None:
    """Both would take their codes from the same list."""
    with pytest.raises(ValueError, match=name):
        FeatureSpec({"channel": (), "transaction_type": ()}, (), (name,))


def test_two_features_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"attributes\.device_code"):
        FeatureSpec({"channel": (), "transaction_type": (), "device": ()}, ("device_code",), ("device",))
