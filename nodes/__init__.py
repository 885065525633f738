"""The ComfyUI extension: the list of its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .adapters import MagiCaptureApplyAdapter, MagiCaptureLoadAdapter, MagiCaptureSaveAdapter
from .faces import (
    MagiCaptureCheckModels,
    MagiCaptureLoadDetector,
    MagiCaptureLoadPaperdollFaces,
    MagiCaptureLoadParser,
    MagiCaptureLoadRecogniser,
)
from .finishing import (
    MagiCaptureLoadFaceRestorer,
    MagiCaptureRestoreFaces,
    MagiCaptureSuperResolve,
)
from .guarding import MagiCaptureGuardIdentity, MagiCaptureMatchGrain
from .magicface import (
    MagiCaptureApplyMagicFace,
    MagiCaptureMagicFaceReference,
    MagiCaptureMagicFaceRegions,
)
from .measuring import MagiCaptureMeasureIdentity
from .paperdoll import MagiCaptureLoadPaperdoll, MagiCapturePaperdollReferences
from .preparing import MagiCaptureCheckReferences, MagiCaptureFaceMasks
from .recipes import MagiCaptureRecipe, MagiCaptureTuneRecipe
from .references import MagiCaptureConcept, MagiCaptureReferenceSet
from .sampling import (
    MagiCaptureEncodePrompt,
    MagiCapturePreviewAttention,
    MagiCapturePrompt,
    MagiCaptureRefocusAttention,
)
from .training import MagiCaptureTrain

NODES: list[type[io.ComfyNode]] = [
    MagiCaptureReferenceSet,
    MagiCaptureConcept,
    MagiCaptureCheckModels,
    MagiCaptureLoadDetector,
    MagiCaptureLoadParser,
    MagiCaptureLoadRecogniser,
    MagiCaptureFaceMasks,
    MagiCaptureCheckReferences,
    MagiCaptureMeasureIdentity,
    MagiCaptureRecipe,
    MagiCaptureTuneRecipe,
    MagiCaptureTrain,
    MagiCaptureSaveAdapter,
    MagiCaptureLoadAdapter,
    MagiCaptureApplyAdapter,
    MagiCapturePrompt,
    MagiCaptureEncodePrompt,
    MagiCaptureRefocusAttention,
    MagiCapturePreviewAttention,
    MagiCaptureLoadPaperdoll,
    MagiCapturePaperdollReferences,
    MagiCaptureLoadPaperdollFaces,
    MagiCaptureSuperResolve,
    MagiCaptureLoadFaceRestorer,
    MagiCaptureRestoreFaces,
    MagiCaptureMatchGrain,
    MagiCaptureGuardIdentity,
    MagiCaptureMagicFaceReference,
    MagiCaptureApplyMagicFace,
    MagiCaptureMagicFaceRegions,
]


class MagiCaptureExtension(ComfyExtension):
    """MagiCapture's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
