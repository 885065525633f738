"""What an adapter's files and card tell about its making."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from magicapture.adapters import credited, load_adapter, model_card, save_adapter
from magicapture.adapters.adapter import Adapter
from magicapture.adapters.card import LIMIT
from magicapture.adapters.reading import read_metadata
from magicapture.errors import InputError
from magicapture.provenance import PROGRAM

Same = Callable[[Adapter, Adapter], None]
AGREED = "Ada agreed in writing | 2026-11-01"
KEY = "modelspec.description"


def test_consent_and_maker_are_in_every_file_and_come_back(
    adapter: Adapter, same: Same, tmp_path: Path
) -> None:
    told = credited(adapter, f"  {AGREED}\n")
    files = save_adapter(told, tmp_path, tmp_path, "portrait")
    for file in (files.lora, *files.embeddings):
        assert read_metadata(file)[KEY] == f"Made with {PROGRAM}. Consent: {AGREED}"
    again = load_adapter(files.lora, [tmp_path])
    same(again, told)
    assert again.info == {**adapter.info, "consent": AGREED, "made_with": PROGRAM}
    assert credited(again).info == again.info, "an empty statement took the consent away"
    assert credited(again, "Ada's guardian").info["consent"] == "Ada's guardian"


def test_nothing_is_said_where_nothing_is_to_be_said(adapter: Adapter, tmp_path: Path) -> None:
    silent = credited(credited(adapter), made_with=False)
    assert silent.info == adapter.info
    file = save_adapter(silent, tmp_path, tmp_path, "portrait").lora
    assert KEY not in read_metadata(file)
    foreign = replace(adapter, recipe=None, concepts=(), info={})
    assert credited(foreign).info == {}, "another program's LoRA is not ours"


def test_a_statement_is_no_document(adapter: Adapter) -> None:
    credited(adapter, "a" * LIMIT)
    with pytest.raises(InputError, match=f"has {LIMIT + 1} characters; expected at most {LIMIT}"):
        credited(adapter, "a" * (LIMIT + 1))


def test_the_card_tells_what_is_known(adapter: Adapter) -> None:
    card = model_card(credited(adapter, AGREED, base="photoreal"), "ada in film")
    assert card.startswith(
        "# ada in film\n\nA LoRA and 2 tokens for Stable Diffusion 1.x, made with"
    )
    for row in (
        "| base model | photoreal |",
        "| tokens | `embedding:ada`, `embedding:film` |",
        "| recipe | paper |",
        "| steps | 12 |",
        r"| consent | Ada agreed in writing \| 2026-11-01 |",
    ):
        assert row in card.splitlines(), row
    assert "embedding:ada woman in the embedding:film style" in card
    assert card.count("```") == 4, "two prompts, each in a block of its own"


def test_a_card_of_another_programs_lora_leaves_out_the_rest(adapter: Adapter) -> None:
    foreign = replace(adapter, recipe=None, concepts=(), info={}, tokens={})
    card = model_card(credited(foreign), "found")
    assert "A LoRA for Stable Diffusion 1.x." in card
    assert "consent" not in card and "steps" not in card and "```" not in card
