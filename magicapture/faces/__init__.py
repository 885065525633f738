"""Faces: their place in a picture, the aligned crop, and what a recogniser says of it."""
