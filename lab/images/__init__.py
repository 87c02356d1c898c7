"""Odd, damaged and badly framed images."""
