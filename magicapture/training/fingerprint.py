"""The name of a run: equal for equal inputs, different for any that could change its result."""

from __future__ import annotations

from ..backbone import Backbone
from ..digests import digest
from ..faces.embed import FaceEmbedder
from ..losses import needs
from ..version import __version__
from .job import TrainingJob


def run_name(job: TrainingJob, backbone: Backbone, embedder: FaceEmbedder | None) -> str:
    """The name of the run of this job with these models; call it outside of `training`.

    It has 64 hexadecimal digits. The face embedder counts where the recipe uses it.
    """
    judge = embedder if "face model" in needs(job.recipe) else None
    return digest(__version__, job.fingerprint(), backbone.fingerprint(), judge)
