"""Measurements of the product on one machine; every figure comes with the environment it was taken in."""
