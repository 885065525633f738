"""The ComfyUI extension: the list of its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension

from ._node import Node
from .adapters import MagiCaptureApplyAdapter, MagiCaptureLoadAdapter, MagiCaptureSaveAdapter
from .evaluating import MagiCaptureEvaluatePictures
from .faces import (
    MagiCaptureCheckModels,
    MagiCaptureLoadFaceDetector,
    MagiCaptureLoadFaceParser,
    MagiCaptureLoadFaceRecognitionModel,
    MagiCaptureLoadPaperdollFaceModels,
)
from .finishing import (
    MagiCaptureLoadFaceRestorer,
    MagiCaptureRestoreFaces,
    MagiCaptureUpscalePortrait,
)
from .guarding import MagiCaptureGuardIdentity, MagiCaptureMatchGrainAndColour
from .keeping import MagiCaptureKeepCheckpoints, MagiCaptureTakeCheckpoint
from .labels import MagiCapturePreviewLabels
from .magicface import (
    MagiCaptureAddMagicFaceReference,
    MagiCaptureApplyMagicFace,
    MagiCapturePreviewMagicFaceRegions,
)
from .measuring import MagiCaptureMeasureIdentity
from .paperdoll import MagiCaptureDrawPaperdollPhotos, MagiCaptureLoadPaperdollDemo
from .preparing import MagiCaptureCheckPhotos, MagiCaptureMakeFaceMasks
from .recipes import MagiCaptureChooseRecipe, MagiCaptureLoadRecipe, MagiCaptureTuneRecipe
from .references import (
    MagiCaptureDefineConcept,
    MagiCaptureLoadPhotoSet,
    MagiCaptureSavePhotoSet,
)
from .sampling import (
    MagiCaptureEncodePrompt,
    MagiCapturePreviewAttention,
    MagiCaptureRefocusAttention,
    MagiCaptureWritePrompt,
)
from .things import MagiCaptureLoadDINO
from .training import MagiCaptureTrain

NODES: list[type[Node]] = [
    MagiCaptureLoadPhotoSet,
    MagiCaptureSavePhotoSet,
    MagiCaptureDefineConcept,
    MagiCaptureCheckModels,
    MagiCaptureLoadFaceDetector,
    MagiCaptureLoadFaceParser,
    MagiCaptureLoadFaceRecognitionModel,
    MagiCaptureMakeFaceMasks,
    MagiCaptureCheckPhotos,
    MagiCaptureMeasureIdentity,
    MagiCaptureEvaluatePictures,
    MagiCaptureChooseRecipe,
    MagiCaptureLoadRecipe,
    MagiCaptureTuneRecipe,
    MagiCapturePreviewLabels,
    MagiCaptureKeepCheckpoints,
    MagiCaptureLoadDINO,
    MagiCaptureTrain,
    MagiCaptureTakeCheckpoint,
    MagiCaptureSaveAdapter,
    MagiCaptureLoadAdapter,
    MagiCaptureApplyAdapter,
    MagiCaptureWritePrompt,
    MagiCaptureEncodePrompt,
    MagiCaptureRefocusAttention,
    MagiCapturePreviewAttention,
    MagiCaptureLoadPaperdollDemo,
    MagiCaptureDrawPaperdollPhotos,
    MagiCaptureLoadPaperdollFaceModels,
    MagiCaptureUpscalePortrait,
    MagiCaptureLoadFaceRestorer,
    MagiCaptureRestoreFaces,
    MagiCaptureMatchGrainAndColour,
    MagiCaptureGuardIdentity,
    MagiCaptureAddMagicFaceReference,
    MagiCaptureApplyMagicFace,
    MagiCapturePreviewMagicFaceRegions,
]


class MagiCaptureExtension(ComfyExtension):
    """MagiCapture's nodes."""

    async def get_node_list(self) -> list[type[Node]]:
        return NODES
