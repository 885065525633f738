"""Finishing: super-resolution, and face restoration that keeps the person."""
