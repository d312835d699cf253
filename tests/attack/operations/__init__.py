"""Hostile calls of every public function of libra_ops, of its NumPy door, and of the registered operators."""
