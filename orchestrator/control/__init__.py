"""The control plane: takes specs, submits them, follows them, fires schedules. Torch-free."""
