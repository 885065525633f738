"""The demo: the whole method on a paperdoll pair, within minutes on a CPU and with no download.

DemoSettings -> run(...) -> Demo -> write(...) -> result.png, curves.png, scores.json
"""

from .demo import Demo, run
from .example import DollExample, doll_example
from .figure import sheet
from .files import require_own, write
from .settings import FAST_STEPS, DemoSettings, held_out_pair, recipe_for

__all__ = [
    "FAST_STEPS",
    "Demo",
    "DemoSettings",
    "DollExample",
    "doll_example",
    "held_out_pair",
    "recipe_for",
    "require_own",
    "run",
    "sheet",
    "write",
]
