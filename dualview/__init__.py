"""Instruction-following retrieval: dual-view data, training and evaluation on Ray."""

from importlib.metadata import version

__version__ = version("dualview")
