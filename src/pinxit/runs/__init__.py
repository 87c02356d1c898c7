"""Run folders: their log, checkpoints, previews, and many runs at once."""
