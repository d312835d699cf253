"""Weights from anywhere: published detectors, our own runs, safetensors, backbones; recognised by what is in a file.

`load.read_weights` reads them, `load.configuration` says which model they are of, `load.fill` puts them into one.
"""
