"""The settings of MagicFace, and which of its two mechanisms a step uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import Checked, setting

Stage = Literal["layout", "details", "look", "off"]
"""layout: all references for every pixel (RSA); details: each in its own region (RBA); look: no
reference acts, but regions are found."""


@dataclass(frozen=True)
class MagicFaceSettings(Checked):
    """How references act while a picture is sampled; shares are of the sampling steps."""

    switch: float = setting(
        0.4,
        "Up to this share of the steps every pixel looks at all references, which lays the picture "
        "out; from then on each reference is seen by its own region alone.",
        low=0,
        high=1,
        release=0.4,
    )
    stop: float = setting(
        1.0, "After this share of the steps the references are left out.", low=0, high=1
    )
    others: float = setting(
        0.9,
        "What a word that is no concept's counts where words compete for a pixel: lower makes "
        "regions larger.",
        low=0.05,
        high=2,
    )
    to_foreground: bool = setting(
        False,
        "Cut the regions to the foreground that the negative prompt's attention shows. Leave it "
        "off for backgrounds as concepts, and where a face's middle is taken for background.",
        release=True,
    )
    region_guidance: bool = setting(
        True,
        "Scale the guidance of each region to the foreground's, so that no concept is drawn "
        "fainter than another.",
        release=True,
    )
    reference_seed: int = setting(
        0, "Seed of the noise on the references, fresh at every noise level.", low=0, high=2**31
    )

    def stage(self, share: float) -> Stage:
        """The mechanism of a step, by the share of steps before it: of 50, 0-20 lay out."""
        if share >= self.stop:
            return "off"
        return "layout" if share <= self.switch and self.switch > 0 else "details"
