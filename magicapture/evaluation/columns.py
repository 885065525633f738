"""The columns of an evaluation: what each says, and where its formula is from."""

from __future__ import annotations

from ..metrics import Metric

COLUMNS = {
    metric.name: metric
    for metric in (
        Metric(
            "score",
            help="Harmonic mean of identity and style, each as a share of the references' own and "
            "cut to 0..1; the one alone where the other is left out. Pictures are sorted by it.",
            high=1.0,
            better="higher",
        ),
        Metric(
            "identity",
            help="Mean cosine of the picture's face to the person's photos, as a share of those "
            "photos' own, each to the others: 1 is another photo, 0 a stranger; no face counts 0.",
            low=None,
            better="higher",
        ),
        Metric(
            "csim",
            help="That cosine itself, which the paper calls CSIM; left out without a face.",
            title="CSIM",
            low=-1.0,
            high=1.0,
            better="higher",
        ),
        Metric(
            "style",
            help="Mean cosine of CLIP's picture embeddings to the style's portraits, faces masked "
            "out of both, as in the paper. Compare with the rows of real pictures: any two are "
            "alike by more than 0.",
            low=-1.0,
            high=1.0,
            better="higher",
        ),
        Metric(
            "aesthetic",
            help="LAION's predictor or another linear head on CLIP's embedding; from about 1 to "
            "10.",
            low=None,
            better="higher",
        ),
        Metric(
            "diversity",
            help="Mean distance (1 - cosine) of CLIP's embeddings over all pairs of the set; of a "
            "picture, to the others.",
            high=2.0,
            better="higher",
        ),
        Metric(
            "copies",
            help="Share of pictures nearer to a training picture, or its mirror image, than half "
            "of what any two of them come to each other (mean difference at 32 x 32; half as in "
            "Carlini et al. 2023).",
            high=1.0,
            better="lower",
        ),
        Metric(
            "obedience",
            help="Cosine of CLIP's embeddings of the picture and of its prompt (CLIPScore, Hessel "
            "et al. 2021, without its factor of 2.5).",
            title="obeys the prompt",
            low=-1.0,
            high=1.0,
            better="higher",
        ),
        Metric(
            "faces",
            help="Share of pictures in which a face is found.",
            title="faces found",
            high=1.0,
            better="higher",
        ),
        Metric(
            "tone",
            help="Individual typology angle of the skin (Chardon et al. 1991), where asked for.",
            title="skin tone",
            unit="°",
            low=-90.0,
            high=90.0,
        ),
        Metric(
            "tone_shift",
            help="How much lighter that is than the median of the person's photos.",
            title="skin lighter by",
            unit="°",
            low=None,
        ),
    )
}
"""By name, in the order of tables and files."""
