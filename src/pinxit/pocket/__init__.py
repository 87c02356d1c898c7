"""pocket: the embedded base model, its world, its eyes, and how all of it is trained."""
