"""What the scripts share: a module for each step between "start this model" and "here is the answer, and its cost"."""

__version__ = "0.1.0"
