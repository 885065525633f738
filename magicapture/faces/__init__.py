"""Faces: their place in a picture, the aligned crop, and what a face embedder says of it."""
