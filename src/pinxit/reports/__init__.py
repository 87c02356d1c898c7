"""Comparison pages and the demo."""
