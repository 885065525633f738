"""How well a map of attention tells a region from the rest of the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def agreement(values: Tensor, inside: Tensor) -> Tensor:
    """The area under the ROC curve of each map (R,h,w) for its mask (R,1,H,W): (R,) in 0..1.

    It is the chance that a cell inside is attended to more than one outside, equal ones counting
    half: 1 for a map that parts them, 0.5 for one that knows nothing. A cell is inside where the
    mask covers half of it or more; NaN where none or all are. By ranks: Mann and Whitney's U over
    the number of pairs (Hanley and McNeil 1982, doi 10.1148/radiology.143.1.7063747).
    """
    regions = F.interpolate(inside.float(), values.shape[-2:], mode="area")[:, 0] >= 0.5
    return torch.stack([_area(v[r], v[~r]) for v, r in zip(values, regions, strict=True)])


def _area(above: Tensor, below: Tensor) -> Tensor:
    """U / (n m) of n values that should lie above m others, both flat; NaN without any of one."""
    ordered = below.sort().values
    less, up_to = (torch.searchsorted(ordered, above, right=right) for right in (False, True))
    return (less + up_to).double().mean() / (2 * len(ordered))
