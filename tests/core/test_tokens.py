"""Tokens in prompts: where they land, what is refused, and which vectors get gradients."""

import pytest
import torch

from magicapture.errors import InputError
from magicapture.tokens import Concept, Prompt, TokenVectors, layout, splice


def words(text):
    """A toy vocabulary: a word's id is 10 + its length."""
    return [10 + len(word) for word in text.split()]


def lay(text, counts, length=12, start=1):
    return layout(Prompt(text), counts, words, start=start, end=2, pad=3, length=length)


@pytest.mark.parametrize("word", ["<my-person>", "a {noun}", "person\nperson", "x" * 61, " "])
def test_a_class_word_is_an_ordinary_noun(word: str) -> None:
    with pytest.raises(InputError, match="class word"):
        Concept("ada", "subject", word)
    assert Concept("rex", "subject", "border collie").class_word == "border collie"


def test_pieces():
    prompt = Prompt("a <ada> woman, <who> in the <ink-2> style")
    assert prompt.pieces(["ada", "ink-2"]) == [
        ("a ", False),
        ("ada", True),
        (" woman, <who> in the ", False),
        ("ink-2", True),
        (" style", False),
    ]
    assert Prompt("").pieces(["ada"]) == []
    assert Prompt("<ada><ada>").pieces(["ada"]) == [("ada", True), ("ada", True)]


def test_layout_of_two_tokens():
    found = lay("a <ada> cat in <ink>", {"ada": 2, "ink": 1})
    #               start a   ada   cat in  ink end pad
    assert found.ids == (1, 11, 1, 1, 13, 12, 1, 2, 3, 3, 3, 3)
    assert found.slots == {2: ("ada", 0), 3: ("ada", 1), 6: ("ink", 0)}
    assert found.positions() == {"ada": [2, 3], "ink": [6]}


def test_layout_for_an_encoder_without_a_start():
    """T5: the first word is column 0, and vectors are laid over padding."""
    found = lay("a <ada> cat", {"ada": 2}, length=7, start=None)
    assert found.ids == (11, 3, 3, 13, 2, 3, 3)
    assert found.slots == {1: ("ada", 0), 2: ("ada", 1)}
    assert lay("a bb ccc dddd", {}, length=4, start=None).ids == (11, 12, 13, 2)
    assert lay("a bb <ada> x", {"ada": 1}, length=4, start=None).slots == {2: ("ada", 0)}
    with pytest.raises(InputError, match="after the 3 that"):
        lay("a bb ccc <ada>", {"ada": 1}, length=4, start=None)


def test_words_beside_a_token_are_told_without_blanks():
    """A vocabulary of T5's kind would have a piece of its own for them."""
    said = []

    def heard(text):
        said.append(text)
        return [10]

    layout(Prompt("a <ada> cat "), {"ada": 1}, heard, start=1, end=2, pad=3, length=9)
    assert said == ["a", "cat"]


def test_a_long_prompt_loses_its_last_words():
    assert lay("a bb ccc dddd eeeee", {}, length=5).ids == (1, 11, 12, 13, 2)


def test_a_token_may_be_the_last_that_fits():
    assert lay("a bb <ada> x y", {"ada": 1}, length=5).ids == (1, 11, 12, 1, 2)


@pytest.mark.parametrize("text", ["a bb ccc <ada>", "a bb <ada>"])
def test_a_token_cut_off_is_refused(text):
    with pytest.raises(InputError, match="shorten"):
        lay(text, {"ada": 2}, length=5)


def test_splice_writes_the_slots_alone():
    layouts = [lay("<ada> a <ink>", {"ada": 2, "ink": 1}), lay("a b", {})]
    vectors = TokenVectors(
        {
            "ada": {"clip_l": torch.tensor([[1.0, 2], [3, 4]])},
            "ink": {"clip_l": torch.tensor([[5.0, 6]])},
        }
    )
    before = torch.zeros(2, 12, 2)
    after = splice(before, layouts, vectors, "clip_l")
    expected = torch.zeros(2, 12, 2)
    expected[0, 1], expected[0, 2], expected[0, 4] = (
        torch.tensor([1.0, 2]),
        torch.tensor([3.0, 4]),
        torch.tensor([5.0, 6]),
    )
    assert torch.equal(after, expected)
    assert not before.any()

    (after * torch.arange(12.0)[None, :, None]).sum().backward()
    assert torch.equal(vectors.get("ada", "clip_l").grad, torch.tensor([[1.0, 1], [2, 2]]))
    assert torch.equal(vectors.get("ink", "clip_l").grad, torch.tensor([[4.0, 4]]))


def test_a_token_twice_gets_both_gradients():
    vectors = TokenVectors({"ada": {"clip_l": torch.ones(1, 2)}})
    layouts = [lay("<ada> <ada>", vectors.counts), lay("<ada>", vectors.counts)]
    splice(torch.zeros(2, 12, 2), layouts, vectors, "clip_l").sum().backward()
    assert torch.equal(vectors.get("ada", "clip_l").grad, torch.full((1, 2), 3.0))


def test_splice_keeps_the_embeddings_dtype():
    vectors = TokenVectors({"ada": {"clip_l": torch.ones(1, 2)}})
    layouts = [lay("<ada>", vectors.counts)]
    after = splice(torch.zeros(1, 12, 2, dtype=torch.bfloat16), layouts, vectors, "clip_l")
    assert after.dtype == torch.bfloat16


def test_vectors_are_copies():
    source = torch.ones(2, 3, dtype=torch.float16)
    vectors = TokenVectors({"ada": {"clip_l": source, "clip_g": torch.ones(2, 5)}})
    assert vectors.counts == {"ada": 2}
    assert [p.dtype for p in vectors.parameters()] == [torch.float32] * 2
    out = vectors.tensors()["ada"]["clip_l"]
    out.zero_()
    source.zero_()
    assert torch.equal(vectors.get("ada", "clip_l").detach(), torch.ones(2, 3))


@pytest.mark.parametrize("name", ["", "two words", "<ada>", "../ada", "-ada", "ada.pt", "ä"])
def test_names_that_cannot_be_files_or_tokens(name):
    with pytest.raises(InputError, match="cannot be used"):
        Concept(name, "subject")


@pytest.mark.parametrize("name", ["nul", "CON", "com1", "x" * 121, "x" * 300])
def test_names_that_no_file_can_have_are_refused_before_training(name):
    with pytest.raises(InputError, match="token name"):
        Concept(name, "subject")


@pytest.mark.parametrize("name", ["train", "keys", "forward", "training"])
def test_names_that_torch_keeps_for_itself_are_refused(name):
    """`TokenVectors` could not hold them."""
    with pytest.raises(InputError, match="reserved"):
        Concept(name, "subject")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 5}, "cannot be used"),
        ({"role": "king"}, "subject or style"),
        ({"vectors": 1.5}, "1 to 16"),
        ({"vectors": "2"}, "1 to 16"),
        ({"vectors": True}, "1 to 16"),
        ({"class_word": []}, "class word"),
        ({"init": 3}, "starts from 3"),
    ],
)
def test_values_of_a_wrong_type_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Concept(**{"name": "ada", "role": "subject", **changes})


@pytest.mark.parametrize("count", [0, 17])
def test_numbers_of_vectors(count):
    with pytest.raises(InputError, match="1 to 16"):
        Concept("ada", "subject", vectors=count)


def test_a_class_word_is_needed():
    with pytest.raises(InputError, match="class word"):
        Concept("ada", "subject", class_word=" ")
