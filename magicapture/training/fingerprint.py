"""The name of a run: equal for equal inputs, different for any that could change its result."""

from __future__ import annotations

from ..backbone import Backbone
from ..digests import digest
from ..dino import Dino
from ..faces.embed import FaceEmbedder
from ..losses import needs
from ..version import __version__
from .job import TrainingJob


def run_name(
    job: TrainingJob, backbone: Backbone, embedder: FaceEmbedder | None, dino: Dino | None = None
) -> str:
    """The name of the run of this job with these models; call it outside of `training`.

    It has 64 hexadecimal digits. The face embedder and DINO count where the recipe uses them.
    """
    wanted = needs(job.recipe)
    judge = embedder if "face model" in wanted else None
    eyes = [dino] if "dino" in wanted else []
    return digest(__version__, job.fingerprint(), backbone.fingerprint(), judge, *eyes)
