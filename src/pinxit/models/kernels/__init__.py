"""Faster layers for the frozen parts of a model on CPUs: convolutions and 8-bit products.

The layers give the results of torch's own, to rounding.
"""
