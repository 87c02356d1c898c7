"""Faster implementations of frozen layers on CPUs: convolutions and int8 matrix products.

The convolutions give the same results as torch's, apart from rounding.
"""
