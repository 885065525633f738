"""MagiCapture: a person's face in a portrait's style, from a handful of photos of each."""

__version__ = "0.1.0"
