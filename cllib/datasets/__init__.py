"""Where each data set comes from, how it is checked, and the tensors it becomes."""
