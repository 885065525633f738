"""The pack's own socket types, and ComfyUI's that its older versions lack, each named once."""

from comfy_api.latest import io

References = io.Custom("MAGICAPTURE_REFERENCES")
"""A `ReferenceSet`."""

ConceptSocket = io.Custom("MAGICAPTURE_CONCEPT")
"""A `Learnable`: a concept with the photos it is learned from."""

RecipeSocket = io.Custom("MAGICAPTURE_RECIPE")
"""A `Recipe`."""

AdapterSocket = io.Custom("MAGICAPTURE_ADAPTER")
"""An `Adapter`: LoRA, token vectors, and how they were trained."""

FaceModelSocket = io.Custom("MAGICAPTURE_FACE_MODEL")
"""A differentiable `FaceEmbedder`."""

DinoSocket = io.Custom("MAGICAPTURE_DINO")
"""A `Dino`."""

DetectorSocket = io.Custom("MAGICAPTURE_DETECTOR")
"""A face `Detector`."""

ParserSocket = io.Custom("MAGICAPTURE_PARSER")
"""A face `Parser`."""

RegionsSocket = io.Custom("MAGICAPTURE_REGIONS")
"""`UsedRegions` of a refocused MODEL; they are filled while it is sampled."""

MagicFaceSocket = io.Custom("MAGICAPTURE_MAGICFACE")
"""A tuple of MagicFace's `Reference`s."""

KeepSocket = io.Custom("MAGICAPTURE_KEEP")
"""A `checkpoints.Keep`: what checkpoints are kept and measured with."""

CheckpointsSocket = io.Custom("MAGICAPTURE_CHECKPOINTS")
"""The `Checkpoints` of a finished training; None where none were kept."""

FaceLandmarks = io.Custom("FACE_LANDMARKS")
"""ComfyUI's own, newer than 0.3.64: the faces that its node Detect Face Landmarks found."""
