"""Hostile files of every kind that libra_det reads, through the commands that read them."""
