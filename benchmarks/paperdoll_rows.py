"""What the paperdoll benchmark trains: the rows of its table, and variants of our default.

Every recipe, our default as well, is brought to paperdoll's size by one rule,
`magicapture.paperdoll.recipe.doll_recipe`: the factor on its learning rates is the one number that
each has of its own, chosen on development pairs from the same grid (`--study rates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from paperdoll_photos import COUNTS, FAULTS, SHARES

from magicapture import Concept, Recipe
from magicapture.config import LoraSettings
from magicapture.older import snr_between
from magicapture.paperdoll.recipe import RATES, doll_recipe
from magicapture.recipes import with_steps, with_weights
from magicapture.schedule import at_side

MAGICFACE = "magicface"
"""The row that trains nothing: it draws with three references and the style in words."""

_SINGLE = ("single_blocks.0", "single_blocks.0, single_blocks.4, single_blocks.5")

GRID = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

PHRASES = ("zed", "kiv")
"""Words that no caption has: the tokenizer cuts them into pieces that pretraining left as random
numbers, of a sixth of a word's norm. "ada" would end in the word "a"."""


@dataclass(frozen=True)
class Row:
    """One line of the table: how to train. No recipe: nothing is trained.

    start: what both tokens' vectors start from; see `magicapture.Concept.init`. strengths: of the
    LoRA at drawing, in the UNet and in the text encoder. phrases: the person's and the style's,
    which then have no vectors. photos: how many of the person, the pair's own number if None.
    masks: the fault of the person's masks and its size in percent of the face
    (`paperdoll_photos.FAULTS`).
    """

    name: str
    recipe: Recipe | None = None
    seed: int = 0
    start: str | None = None
    strengths: tuple[float, float] = (1.0, 1.0)
    phrases: tuple[str, str] | None = None
    photos: int | None = None
    masks: tuple[str, int] | None = None

    def concepts(self) -> tuple[Concept, Concept]:
        """The subject's and the style's token."""
        subject = Concept("dolls-face", "subject", init=self.start)
        style = Concept("dolls-look", "style", init=self.start)
        if self.phrases is None:
            return subject, style
        person, look = self.phrases
        return replace(subject, vectors=0, phrase=person), replace(style, vectors=0, phrase=look)


def rows() -> list[Row]:
    """The rows of the table, in its order."""
    default = doll_recipe()
    once = replace(default.phases[-1], steps=default.steps)
    without_ar = with_weights(default, attention=0)
    return [
        Row("truth"),
        Row("untrained"),
        _named("textual-inversion"),
        _named("dreambooth"),
        _named("custom-diffusion"),
        _named("paper"),
        _named("release"),
        _released(),
        Row("magicapture", default),
        Row("without refocusing", without_ar),
        Row("without composed prompts", with_weights(default, composed=0)),
        Row("without identity loss", with_weights(default, identity=0)),
        Row("without laid-in labels", replace(default, pseudo_label="portrait")),
        Row("without masks", replace(default, masked=False)),
        Row("one phase", replace(default, phases=(once,))),
        Row("phrases", default, phrases=PHRASES),
        Row(MAGICFACE),
        Row("magicapture, second seed", default, seed=1),
        Row("without refocusing, second seed", without_ar, seed=1),
    ]


def studies() -> Mapping[str, list[Row]]:
    """Variants of our default, by the question they answer; for development pairs alone."""
    default = Row("magicapture", doll_recipe())
    return {
        "ar": [default, *_refocusing(doll_recipe())],
        "identity": [default, *_identity(doll_recipe())],
        "shape": [default, *_shape(doll_recipe())],
        "phrases": [default, Row("phrases", doll_recipe(), phrases=PHRASES)],
        "photos": [default, *map(_counted, COUNTS)],
        "masks": [default, *_masks(), Row("no masks", replace(doll_recipe(), masked=False))],
        "blocks": [default, *(_looking(name) for name in ("auto", *_SINGLE))],
        "rates": [
            *(_named(name, factor) for name in RATES for factor in GRID),
        ],
    }


def _named(name: str, factor: float | None = None) -> Row:
    """A recipe's row, at a factor of the grid or at the one it was tuned to.

    DreamBooth's tokens are rare words: meaningless vectors that stay as they are. Custom
    Diffusion trains keys and values of cross-attention whole; a LoRA whose rank is the layers'
    width can be any update of them, and starts from none.
    """
    recipe = doll_recipe(name, factor)
    if name == "custom-diffusion":
        recipe = replace(recipe, lora=LoraSettings(rank=128, targets="cross_kv"))
    start = "random" if name == "dreambooth" else None
    return Row(name if factor is None else f"{name} x{factor}", recipe, start=start)


def _released() -> Row:
    """The release as its authors run it: L_attn has no gradient there, and strengths are lower."""
    recipe = with_weights(doll_recipe("release"), attention=0)
    return Row("release as shipped", recipe, strengths=(0.6, 0.9))


def _refocusing(recipe: Recipe) -> list[Row]:
    """Forms of Attention Refocusing: scaling, weight, layers, tasks, share of the run."""

    def form(name: str, weight: float, recipe: Recipe = recipe, **settings: object) -> Row:
        refocus = replace(recipe.refocus, **settings)  # type: ignore[arg-type]
        return Row(name, replace(with_weights(recipe, attention=weight), refocus=refocus))

    own, composed = recipe.phases[-1].weights.attention, ("composed",)
    return [
        form("no refocusing", 0),
        *(form(f"none {w:g}", w, scaling="none") for w in (10, 40, 200)),
        *(form(f"max {w:g}", w, scaling="max") for w in (0.002, 0.005, 0.02, 0.1, 0.5)),
        *(form(f"minmax {w:g}", w, scaling="minmax") for w in (0.02, 0.1)),
        *(form(f"mean {w:g}", w, scaling="mean") for w in (0.002, 0.05)),
        form("finest maps", own, factors=(1,)),
        form("coarser maps", own, factors=(2,)),
        form("composed alone", own, tasks=composed),
        form("source and style", own, tasks=("source", "style")),
        form("first half", own, recipe=_first_half(recipe)),
    ]


def _counted(photos: int) -> Row:
    """The default on so many photos of the person, also on fewer than it asks for."""
    recipe = doll_recipe()
    recipe = replace(recipe, min_images=min(photos, recipe.min_images))
    return Row(f"{photos} photos", recipe, photos=photos)


def _masks() -> Iterator[Row]:
    """Masks with each fault, of each size; an oval is one at any size."""
    for kind in FAULTS:
        for percent in (0, *SHARES) if kind == "oval" else SHARES:
            yield Row(f"{kind} {percent} %", doll_recipe(), masks=(kind, percent))


def _looking(blocks: str) -> Row:
    """Attention Refocusing on other blocks of a transformer."""
    recipe = doll_recipe()
    return Row(f"blocks {blocks}", replace(recipe, refocus=replace(recipe.refocus, blocks=blocks)))


def _first_half(recipe: Recipe) -> Recipe:
    """The last phase cut in two, the second without refocusing (its rates begin anew)."""
    last = recipe.phases[-1]
    first = replace(last, steps=last.steps // 2)
    rest = replace(last, steps=last.steps - first.steps, weights=last.weights.changed(attention=0))
    return replace(recipe, phases=(*recipe.phases[:-1], first, rest))


def _identity(recipe: Recipe) -> list[Row]:
    """Forms of the identity loss: T' as a timestep, weight, a pass of its own, tasks."""

    own = recipe.phases[-1].weights.identity

    def form(name: str, weight: float = own, **settings: object) -> Row:
        identity = replace(recipe.identity, **settings)  # type: ignore[arg-type]
        return Row(name, replace(with_weights(recipe, identity=weight), identity=identity))

    def below(t: int) -> float:
        """T' as an SNR at 512 px, for a miniature's side."""
        return snr_between(t) / at_side(1, recipe.resolution)

    return [
        *(form(f"T' {t}", min_snr=below(t)) for t in (200, 400, 650, 800)),
        *(form(f"weight {w:g}", weight=w) for w in (0.1, 0.25, 1, 2)),
        form("a pass of its own", separate_pass=True),
        form("a pass of its own, T' 200", separate_pass=True, min_snr=below(200)),
        form("composed and source", tasks=("composed", "source")),
        form("not weighted by signal", weight_by_signal=False),
    ]


def _shape(recipe: Recipe) -> list[Row]:
    """Steps (rates as they are), the LoRA, labels, variants, and the share of the first phase."""
    steps, (first, last) = recipe.steps, recipe.phases

    def lora(name: str, **settings: object) -> Row:
        return Row(name, replace(recipe, lora=replace(recipe.lora, **settings)))  # type: ignore[arg-type]

    return [
        *(Row(f"steps x{k}", with_steps(recipe, round(k * steps))) for k in (0.5, 2, 4)),
        *(lora(f"rank {r}", rank=r) for r in (4, 8, 32)),
        lora("cross-attention alone", targets="cross"),
        lora("cross and self", targets="cross_and_self"),
        Row("portraits for labels", replace(recipe, pseudo_label="portrait")),
        Row("mirrored", replace(recipe, flip=True)),
        Row("cropped", replace(recipe, zoom=0.1)),
        Row("tokens slower", _with_token_rates(recipe, 0.25)),
        Row("tokens faster", _with_token_rates(recipe, 4)),
        Row(
            "short first phase",
            replace(recipe, phases=(replace(first, steps=first.steps // 4), last)),
        ),
    ]


def _with_token_rates(recipe: Recipe, factor: float) -> Recipe:
    """The rates of the token vectors alone multiplied by a factor."""
    phases = (
        replace(p, rates=replace(p.rates, tokens=factor * p.rates.tokens)) for p in recipe.phases
    )
    return replace(recipe, phases=tuple(phases))
