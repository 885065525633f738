"""How the paperdoll weights are trained from nothing; run from a clone, and not installed."""
