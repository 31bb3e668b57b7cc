"""What the scripts share: one module for each step between "start this model" and "here is the answer and what it cost"."""

__version__ = "0.1.0"
