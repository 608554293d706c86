"""The parts of a GPT that one line of a config swaps: a base class and its variants in each file.

A part of your own is a subclass of one of these bases, in a file of yours, named by its import path.
"""
