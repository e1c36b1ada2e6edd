"""The decoder under atheris: inputs that reach new code are kept and changed further.

Run as ``python guided.py [libFuzzer's options]``. Only the decoder: numba cannot compile what atheris has
instrumented.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["stream.events", "stream.events.decode"]):
    from fuzz import decoder


def one_input(raw: bytes) -> None:
    decoder.check(raw)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        words = Path(folder) / "words"
        rng = random.Random(1)
        for at in range(200):
            (corpus / str(at)).write_bytes(decoder.hostile(rng))
        lines = ["".join(f"\\x{byte:02x}" for byte in token) for token in decoder.TOKENS if len(token) < 60]
        words.write_text("".join(f'"{line}"\n' for line in lines), "ascii")
        options = [f"-dict={words}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"]
        atheris.Setup(
            [sys.argv[0], *options, "-print_final_stats=1", *sys.argv[1:], str(corpus)], decoder.check
        )
        atheris.Fuzz()


main()
