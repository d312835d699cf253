"""The commands of `libra`, a file each. PyTorch is imported when a command runs, not when this package is."""
