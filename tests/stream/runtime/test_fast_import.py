"""What a worker imports: its libraries without those for training, and none the worse for it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from stream.runtime.fast_import import import_without_optional
import_without_optional(drift=True)
import stream.monitoring.drift, stream.runtime.worker
libraries = {"lightgbm", "river", "sklearn", "pandas", "sqlalchemy", "scipy.stats"}
print(*sorted(libraries & sys.modules.keys()))
import numpy as np, lightgbm
rows = np.arange(200.0).reshape(100, 2)
made = lightgbm.train({"verbose": -1, "min_data_in_leaf": 1}, lightgbm.Dataset(rows, rows[:, 0] > 50), 3)
print(lightgbm.Booster(model_str=made.model_to_string()).predict(rows).shape)
import pandas, scipy.stats, sklearn.linear_model
print(sklearn.__name__, pandas.__name__)
"""


def test_what_a_worker_imports() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["lightgbm river", "(100,)", "sklearn pandas"], done.stderr
