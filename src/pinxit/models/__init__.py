"""Base models: families (one file each), text encoders, noise schedules, sources of weights.

All knowledge of one model family is in its file under `families`. Changes to a model belong in
`adapters`.
"""
