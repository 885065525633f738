"""The bench's scores where the truth is known: dolls, read by the shipped networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magicapture.backbones import load_backbone
from magicapture.bench.judge import Case, Judge
from magicapture.bench.machine import machine
from magicapture.bench.sets import Shots
from magicapture.errors import InputError
from magicapture.memory import PeakMemory
from magicapture.paperdoll import (
    SIZE,
    Doll,
    identity_from_seed,
    pose_from_seed,
    render,
    style_from_seed,
)
from magicapture.paperdoll.faces import doll_analyzer
from magicapture.paperdoll.pairs import pictures, references
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.style import Space, StyleReader

FIRST = 1_000_000  # of the development seeds
USED, HELD = 4, 3


def shots(name: str, dolls: Sequence[Doll]) -> Shots:
    every = references(dolls)
    return Shots(name, every.only(range(USED)), every.only(range(USED, len(dolls))))


def photos_of(person: int) -> list[Doll]:
    """A person in photos."""
    seeds = range(FIRST + 31_000 + 20 * person, FIRST + 31_000 + 20 * person + USED + HELD)
    who = identity_from_seed(FIRST + 30_000 + person)
    return [
        render(who, replace(style_from_seed(s), medium="photo"), pose_from_seed(s)) for s in seeds
    ]


def portraits_in(style: int) -> list[Doll]:
    """Strangers in a style."""
    seeds = range(FIRST + 34_000 + 20 * style, FIRST + 34_000 + 20 * style + USED + HELD)
    look = style_from_seed(FIRST + 33_000 + style)
    return [render(identity_from_seed(s), look, pose_from_seed(s)) for s in seeds]


@pytest.fixture(scope="module")
def reader() -> StyleReader:
    return StyleReader(load_backbone(WEIGHTS))


@pytest.fixture(scope="module")
def judge(reader: StyleReader) -> Judge:
    people = [shots(f"person {n}", photos_of(n)) for n in range(2)]
    styles = [shots(f"style {n}", portraits_in(n)) for n in range(2)]
    return Judge(doll_analyzer(), reader, people, styles, SIZE)


@pytest.fixture(scope="module")
def case(judge: Judge) -> Case:
    return judge.case(0, 0)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def composed() -> Tensor:
    """The first person in the first style: what training is to draw."""
    who, look = identity_from_seed(FIRST + 30_000), style_from_seed(FIRST + 33_000)
    return pictures([render(who, look, pose_from_seed(FIRST + 50_000 + n)) for n in range(4)])


def test_true_compositions_have_both_and_strangers_neither(judge: Judge, case: Case) -> None:
    true = judge.scores(composed(), case)
    assert mean(true["identity"]) > 0.9 and min(true["style"]) > 0.7 and mean(true["both"]) > 0.8
    assert true["collapse"] == [0] * 4 and true["faces"] == [1] * 4
    photos = judge.scores(pictures(photos_of(1)[:2]), case)  # another person, in no style
    assert mean(photos["identity"]) < 0.7 and mean(photos["style"]) < 0.3
    assert photos["collapse"] == [1, 1]
    portraits = judge.scores(pictures(portraits_in(0)[:2]), case)
    assert min(portraits["style"]) > 0.8 and mean(portraits["identity"]) < 0.7
    assert mean(portraits["portraits"]) > 1 > mean(true["portraits"])


def test_pictures_held_out_are_the_ceiling(judge: Judge) -> None:
    for pair in ((0, 0), (1, 1)):
        found = judge.references(*pair, judge.case(*pair))
        for name in ("identity", "style"):
            assert found["held out"][name] == pytest.approx(1, abs=0.25)
            assert found["without it"][name] < 0.5


def test_copies_are_told_also_in_the_mirror(judge: Judge, case: Case) -> None:
    own = pictures(photos_of(0))
    shown = torch.stack([own[0], own[1].flip(-1), own[0] + 0.01 * torch.randn(own[0].shape)])
    assert judge.scores(shown.clamp(0, 1), case)["copies"] == [1, 1, 1]
    assert judge.scores(own[USED:], case)["copies"] == [0] * HELD
    assert judge.scores(composed(), case)["copies"] == [0] * 4


def test_a_picture_without_a_face_is_no_person(judge: Judge, case: Case) -> None:
    grey = judge.scores(torch.full((1, 3, SIZE, SIZE), 0.5), case)
    assert (grey["faces"], grey["identity"], grey["collapse"]) == ([0], [0], [1])


def test_the_face_is_left_out_of_the_style(reader: StyleReader) -> None:
    doll = portraits_in(0)[0]
    image, mask = torch.from_numpy(doll.image), torch.from_numpy(doll.mask).ceil()
    other = torch.where(mask > 0, image.flip(0), image)
    pixels = [reader(one, mask)[:6] for one in (image, other)]  # means and spreads of R, G, B
    torch.testing.assert_close(pixels[0], pixels[1])
    assert not torch.allclose(reader(image, None)[:6], reader(other, None)[:6])
    outside = image[:, mask[0] == 0]
    torch.testing.assert_close(pixels[0][:3], outside.mean(1), atol=1e-4, rtol=1e-4)
    spread = outside.std(1, correction=0)
    torch.testing.assert_close(pixels[0][3:].exp() - 1e-3, spread, atol=1e-4, rtol=1e-4)


def test_each_level_of_a_style_counts_alike(reader: StyleReader) -> None:
    weights = reader.weights(torch.zeros(3, SIZE, SIZE))
    levels = weights.unique()
    assert len(levels) >= 3  # pixels, features, latents
    assert float((weights**2).sum()) == pytest.approx(round(float((weights**2).sum())))


def test_a_space_takes_away_what_all_share() -> None:
    pool = torch.rand(50, 3) * torch.tensor([1.0, 10, 0]) + torch.tensor([5.0, -70, 2])
    inside = Space.of(pool)(pool)
    torch.testing.assert_close(inside.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std(0), torch.tensor([1.0, 1, 0]), atol=1e-4, rtol=0)
    far = pool[:1] + torch.tensor([1e6, -1e6, 1e6])
    torch.testing.assert_close(Space.of(pool)(far), torch.tensor([[3.0, -3, 3]]))
    plain = Space.of(pool, spread=False)(pool)
    torch.testing.assert_close(plain.std(0), pool.std(0))


def test_sets_without_a_person_or_a_style_are_named(reader: StyleReader) -> None:
    judge = Judge(
        doll_analyzer(),
        reader,
        [shots("ada", photos_of(0))],
        [shots("noir", portraits_in(0))],
        SIZE,
    )
    judge.case(0, 0)  # one of each will do
    looks = judge.styles[0].styles
    looks[1:6:2] = 2 * judge.space.centre - looks[:6:2]  # each the opposite of the one before
    with pytest.raises(InputError, match=r"noir: the portraits are alike by .* only"):
        judge.case(0, 0)
    faces = judge.people[0].faces
    faces[1:6:2] = -faces[:6:2]
    with pytest.raises(InputError, match="ada: The person's photos have a mean cosine of only"):
        judge.case(0, 0)


def test_peak_memory_counts_from_where_it_was_made() -> None:
    device = torch.device("cpu")
    quiet = PeakMemory(device)
    before = quiet.process
    if before is None:
        pytest.skip("this system does not tell")
    held = torch.ones(100 * 2**18)  # 100 MiB
    assert quiet.process - before > 60 and quiet.gpu is None
    del held
    told = machine(device)
    assert told["packages"]["torch"] == torch.__version__.partition("+")[0] and told["device"]
