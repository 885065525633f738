"""The face parsers: each is one file here and one entry of this list."""

from .bisenet import BISENET
from .parsenet import PARSENET

PARSERS = (BISENET, PARSENET)
