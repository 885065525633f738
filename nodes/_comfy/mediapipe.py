"""ComfyUI's own MediaPipe: its model file as a detector, and the faces that its nodes found.

Its networks are ComfyUI's classes, newer than 0.3.64, imported when the file is loaded. There are
two face detectors in the file, for near faces and for far ones, and one network that lays a mesh
over each face; the five landmarks are read off the mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...magicapture.data import ReferenceSet
from ...magicapture.data.masks import ASPECT_TOLERANCE
from ...magicapture.errors import InputError, MagiCaptureError
from ...magicapture.faces.content import Content
from ...magicapture.faces.mesh import five_points
from ...magicapture.faces.models import ModelFile, ModelKind
from ...magicapture.faces.protocols import Face
from ...magicapture.faces.registry import registered_model
from ...magicapture.faces.square import SIDES, SquareDetector
from ...magicapture.faces.weights import filled

_DETECTORS = {"short": "detector_short.", "full": "detector_full."}
"""ComfyUI's names of the two face detectors, and how the names of their weights begin."""

_SHARED = ("mesh.", "blendshapes.")


def _recognises(content: Content) -> bool:
    return all(
        any(n.startswith(p) for n in content.names) for p in (*_DETECTORS.values(), *_SHARED)
    )


def _load(content: Content) -> SquareDetector:
    try:
        from comfy_extras.mediapipe.face_landmarker import FaceLandmarker
    except ImportError as error:
        raise MagiCaptureError(
            f"{content.path.name} runs by ComfyUI's own MediaPipe nodes, and this ComfyUI is older "
            "than they are. Update ComfyUI, or choose another face detector."
        ) from error
    networks = []
    for variant, prefix in _DETECTORS.items():
        network = FaceLandmarker(device="cpu", dtype=torch.float32, detector_variant=variant)
        weights = {n: w for n, w in content.weights.items() if n.startswith(_SHARED)}
        weights |= {
            f"detector.{name.removeprefix(prefix)}": weight
            for name, weight in content.weights.items()
            if name.startswith(prefix)
        }
        networks.append(filled(network, weights, content.path.name))

    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        rgb = [np.ascontiguousarray(picture[..., ::-1])]
        with torch.no_grad():
            runs = [network.detect_batch(rgb, num_faces=0)[0] for network in networks]
        # The mesh's own logit says whether there is a face; MediaPipe drops those below a half.
        seen = [[face for face in run if face["presence"] > 0] for run in runs]
        rows = [_row(face) for face in max(seen, key=len)]
        return np.array(rows, np.float32).reshape(-1, 15)

    # The networks shrink any picture to 128 and 192 pixels, so that no other side finds more.
    return SquareDetector(find, sides=SIDES[:1])


def _row(face: Mapping[str, Any]) -> list[float]:
    points = five_points(torch.from_numpy(face["landmarks_xy"])).flatten().tolist()
    return [*map(float, face["bbox_xyxy"]), *points, float(face["score"])]


MEDIAPIPE = ModelKind(
    "detector",
    "MediaPipe (ComfyUI's own)",
    files=(
        ModelFile(
            "mediapipe_face_fp32.safetensors",
            "detection",
            "the repository Comfy-Org/mediapipe",
            "Apache-2.0",
            rank=60,
            names=("mediapipe_face*.safetensors",),
        ),
    ),
    endings=(".safetensors",),
    recognises=_recognises,
    load=_load,
)

_always = registered_model(MEDIAPIPE)
_always.__enter__()  # for as long as the nodes are there, which is until ComfyUI ends


def given_faces(landmarks: Sequence[Any], photos: ReferenceSet) -> list[tuple[Face, ...]]:
    """For each photo the faces of FACE_LANDMARKS, one or a list, in the photo's pixels.

    Raises InputError for another count or shape of pictures, or for what ComfyUI's own node Detect
    Face Landmarks does not give.
    """
    frames = [frame for one in landmarks for frame in _frames(one)]
    if len(frames) != len(photos):
        raise InputError(
            f"The input 'landmarks' is of {len(frames)} picture{'s' * (len(frames) != 1)} and "
            f"there {'is' if len(photos) == 1 else 'are'} {len(photos)} "
            f"photo{'s' * (len(photos) != 1)}; detect them in these very photos."
        )
    return [
        tuple(_face(face, size, photo.size, photo.name) for face in faces)
        for (faces, size), photo in zip(frames, photos, strict=True)
    ]


def _frames(given: Any) -> Iterator[tuple[Sequence[Any], tuple[int, int]]]:
    """The faces of each picture, with the picture's height and width."""
    try:
        height, width = map(int, given["image_size"])
        frames = [list(faces) for faces in given["frames"]]
        assert all(isinstance(face, Mapping) for faces in frames for face in faces)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            "The input 'landmarks' holds no faces of ComfyUI's own node Detect Face Landmarks "
            "(MediaPipe); connect that one's face_landmarks."
        ) from error
    yield from ((faces, (height, width)) for faces in frames)


def _face(
    face: Mapping[str, Any], size: tuple[int, int], wanted: tuple[int, int], name: str
) -> Face:
    """A face found in a picture of one size (H,W), in the pixels of the same at another."""
    (height, width), (high, wide) = size, wanted
    if abs((width * high) / (height * wide) - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"{name}: the face was found in a picture of {width}x{height} pixels and the photo has "
            f"{wide}x{high}, of another shape; detect it in this very photo."
        )
    scale = torch.tensor([wide / width, high / height])

    def moved(points: Tensor) -> Tensor:
        return (points.float() + 0.5) * scale - 0.5

    mesh, box = (torch.as_tensor(face[key]) for key in ("landmarks_xy", "bbox_xyxy"))
    corners = moved(box.reshape(2, 2)).flatten()
    return Face(corners, moved(five_points(mesh.float())), float(face["score"]))
