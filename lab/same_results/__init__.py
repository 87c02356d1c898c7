"""Compare the results of two versions of pinxit to the bit: losses, pixels and tensors."""
