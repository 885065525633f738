"""How the networks of the embedded world are trained from nothing: `python -m` this package."""
