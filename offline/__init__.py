"""The offline half: data, training, evaluation and replay."""
