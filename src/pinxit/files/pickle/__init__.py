"""Reading PyTorch's pickle files as data: nothing in a file is imported or called."""
