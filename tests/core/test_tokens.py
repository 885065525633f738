"""Tokens in prompts: where they land, what is refused, and which vectors get gradients."""

import pytest
import torch

from magicapture.errors import InputError
from magicapture.tokens import Concept, Phrase, Prompt, TokenVectors, layout, splice


def words(text):
    """A toy vocabulary: a word's id is 10 + its length."""
    return [10 + len(word) for word in text.split()]


def lay(text, counts, length=12, start=1, pad=3):
    before = () if start is None else (start,)
    return layout(Prompt(text), counts, words, before=before, after=(2,), pad=pad, length=length)


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
    assert found.columns == {"ada": [2, 3], "ink": [6]}


def test_layout_for_an_encoder_without_a_start():
    """T5: the first word is column 0, and vectors are laid over padding."""
    found = lay("a <ada> cat", {"ada": 2}, length=7, start=None)
    assert found.ids == (11, 3, 3, 13, 2, 3, 3)
    assert found.slots == {1: ("ada", 0), 2: ("ada", 1)}
    assert lay("a bb ccc dddd", {}, length=4, start=None).ids == (11, 12, 13, 2)
    assert lay("a bb <ada> x", {"ada": 1}, length=4, start=None).slots == {2: ("ada", 0)}
    with pytest.raises(InputError, match="after the 3 that"):
        lay("a bb ccc <ada>", {"ada": 1}, length=4, start=None)


def test_layout_in_a_template():
    """A language model's: words between others, and a text stays as long as it is."""

    def lay_in(text, counts, length):
        prompt = Prompt(text)
        return layout(prompt, counts, words, before=(7, 8), after=(9, 2), pad=None, length=length)

    found = lay_in("a <ada> cat", {"ada": Phrase("bb", "x")}, 12)
    assert found.ids == (7, 8, 11, 12, 13, 9, 2) and found.columns == {"ada": [3]}
    assert lay_in("a bb ccc dddd", {}, 6).ids == (7, 8, 11, 12, 9, 2)
    with pytest.raises(InputError, match="after the 2 that"):
        lay_in("a bb <ada>", {"ada": Phrase("ccc", "x")}, 6)


def test_words_beside_a_token_are_told_without_blanks():
    """A vocabulary of T5's kind would have a piece of its own for them."""
    said = []

    def heard(text):
        said.append(text)
        return [10]

    layout(Prompt("a <ada> cat "), {"ada": 1}, heard, before=(1,), after=(2,), pad=3, length=9)
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
    written = vectors.written("clip_l")
    layouts = [lay("<ada> <ada>", written), lay("<ada>", written)]
    splice(torch.zeros(2, 12, 2), layouts, vectors, "clip_l").sum().backward()
    assert torch.equal(vectors.get("ada", "clip_l").grad, torch.full((1, 2), 3.0))


def test_splice_keeps_the_embeddings_dtype():
    vectors = TokenVectors({"ada": {"clip_l": torch.ones(1, 2)}})
    layouts = [lay("<ada>", vectors.written("clip_l"))]
    after = splice(torch.zeros(1, 12, 2, dtype=torch.bfloat16), layouts, vectors, "clip_l")
    assert after.dtype == torch.bfloat16


def test_vectors_are_copies():
    source = torch.ones(2, 3, dtype=torch.float16)
    vectors = TokenVectors({"ada": {"clip_l": source, "clip_g": torch.ones(2, 5)}})
    assert vectors.written("clip_l") == {"ada": 2}
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


@pytest.mark.parametrize("count", [-1, 17])
def test_numbers_of_vectors(count):
    with pytest.raises(InputError, match="1 to 16"):
        Concept("ada", "subject", vectors=count)


def test_a_class_word_is_needed():
    with pytest.raises(InputError, match="class word"):
        Concept("ada", "subject", class_word=" ")


ADA, INK = Phrase("ada lovel", "woman"), Phrase("ink", "style")


def test_a_phrase_is_laid_out_as_its_words():
    found = lay("a <ada> woman in the <ink> style", {"ada": ADA, "ink": INK})
    assert found.ids == lay("a ada lovel woman in the ink style", {}).ids
    assert found.slots == {}
    # start a ada lovel woman in the ink style
    assert found.columns == {"ada": [2, 3, 4], "ink": [7, 8]}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("<ada>", [1, 2]),
        ("<ada> lady", [1, 2]),
        ("<ada> woman", [1, 2, 3]),
        ("<ada>  Woman, old", [1, 2, 3]),
        ("<ada> womanly", [1, 2]),
        ("<ada> old woman", [1, 2]),
        ("woman <ada>, ada", [2, 3]),
        ("<ada> <ada> woman", [1, 2, 3, 4, 5]),
        ("<ada>woman", [1, 2]),
    ],
)
def test_the_noun_right_behind_a_phrase_is_its_column_too(text, columns):
    assert lay(text, {"ada": ADA}).columns == {"ada": columns}


def test_an_encoder_sees_a_phrase_among_the_words_beside_it():
    """One that cuts words by their neighbours cuts them as in the spelled text."""
    texts = []

    def letters(text):
        texts.append(text)
        return [*map(ord, text)]

    found = layout(
        Prompt("a <ada>s <ink> b"),
        {"ada": ADA, "ink": 1},
        letters,
        before=(),
        after=(2,),
        pad=3,
        length=40,
    )
    assert texts[0] == "a ada lovels"
    assert found.columns == {"ada": [*range(1, 11)], "ink": [12]}
    assert found.ids[:14] == (*map(ord, "a ada lovels"), 3, ord("b"))


def test_vectors_and_phrases_side_by_side():
    vectors = TokenVectors({"ada": {"clip_l": torch.ones(2, 3)}}, {"ada": ADA, "ink": INK})
    assert vectors.written("clip_l") == {"ada": 2, "ink": INK}
    assert vectors.written("t5xxl") == {"ada": ADA, "ink": INK}
    found = lay("<ada> woman in <ink> style", vectors.written("clip_l"))
    assert found.columns == {"ada": [1, 2], "ink": [5, 6]}
    assert found.slots == {1: ("ada", 0), 2: ("ada", 1)}


def test_a_phrase_cut_off_is_refused():
    assert lay("a bb <ada>", {"ada": ADA}, length=6).columns == {"ada": [3, 4]}
    with pytest.raises(InputError, match="shorten"):
        lay("a bb <ada>", {"ada": ADA}, length=5)


def test_how_a_concept_is_called():
    ada = Concept("ada-1", "subject", "woman", vectors=0, phrase=" ada  lovel ")
    assert ada.spelled == Phrase("ada lovel", "woman")
    assert ada.stock == "ada lovel"
    assert Concept("ink", "style", "woman", vectors=0).spelled == INK
    assert Concept("ink", "style").stock == "embedding:ink"


def test_a_text_names_a_phrase_in_plain_words():
    ada = Concept("ada", "subject", vectors=0, phrase="ada lovel")
    assert ada.is_named_in("Ada  Lovel on a beach")
    assert ada.is_named_in("<ada> on a beach")
    assert not ada.is_named_in("ada lovell on a beach")
    assert not Concept("ada", "subject").is_named_in("ada on a beach")


@pytest.mark.parametrize(
    "phrase", ["<ada>", "(ada:1.2)", "a {b}", "ada\nb", "x" * 61, "", " .", 5, "Embedding:ada"]
)
def test_a_phrase_is_of_ordinary_words(phrase):
    with pytest.raises(InputError, match="phrase of 'ada'"):
        Concept("ada", "subject", vectors=0, phrase=phrase)


def test_a_phrase_is_not_the_class_word():
    with pytest.raises(InputError, match="every border collie would be it"):
        Concept("rex", "subject", "border collie", vectors=0, phrase="Border  collie")
    with pytest.raises(InputError, match="every person would be it"):
        Concept("person", "subject", vectors=0)
    assert Concept("person-1", "subject", phrase="person").vectors == 1


def test_facts_are_those_of_before_where_there_is_no_phrase():
    assert Concept("ada", "subject").facts() == {
        "name": "ada",
        "role": "subject",
        "class_word": "person",
        "vectors": 1,
        "init": None,
    }
    ada = Concept("ada", "subject", vectors=0, phrase="ada lovel")
    assert Concept(**ada.facts()) == ada
