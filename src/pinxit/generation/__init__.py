"""Generation requests, schedulers, the denoising loop and controls (one file each)."""
