"""Reversible changes to a model: placeholder tokens, full weights, LoRA, attention sharing.

Every adapter can be removed again to the last bit. What is stored in files belongs in `concepts`.
"""
