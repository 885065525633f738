"""The only place that meets ComfyUI: models made trainable, sockets, folders, progress.

What differs between ComfyUI's versions is dealt with here, so that the nodes need not know.
"""

from .adapters import apply_adapter
from .backbone import ComfyBackbone
from .clip import ComfyEyes
from .host import (
    Cancelled,
    Progress,
    check_cancel,
    find_file,
    host_versions,
    model_folders,
    node_id,
    output_folder,
    show_text,
)
from .looking import look
from .marks import encode_marked
from .mediapipe import given_faces
from .native import own_parts
from .refocusing import UsedRegions, refocus
from .scope import Part, gradients
from .sockets import (
    images_from_socket,
    images_to_socket,
    masks_from_socket,
    masks_to_socket,
)
from .stopping import saved_when_stopped

__all__ = [
    "Cancelled",
    "ComfyBackbone",
    "ComfyEyes",
    "Part",
    "Progress",
    "UsedRegions",
    "apply_adapter",
    "check_cancel",
    "encode_marked",
    "find_file",
    "given_faces",
    "gradients",
    "host_versions",
    "images_from_socket",
    "images_to_socket",
    "look",
    "masks_from_socket",
    "masks_to_socket",
    "model_folders",
    "node_id",
    "output_folder",
    "own_parts",
    "refocus",
    "saved_when_stopped",
    "show_text",
]
