"""The parts of a GPT, which a config names: one kind a file. contract.py defines the kinds.

A part of your own is a module with the `forward` of its kind, in a file of yours, named by its import path.
"""
