"""The face detectors: each is one file here and one entry of this list."""

from .retinaface import RETINAFACE
from .scrfd import SCRFD
from .yunet import YUNET

DETECTORS = (SCRFD, RETINAFACE, YUNET)
