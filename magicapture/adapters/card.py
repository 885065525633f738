"""What an adapter tells people: who made it, who agreed, how to use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import InputError
from ..families import FAMILIES
from ..prompts import as_embeddings
from ..provenance import PROGRAM
from .adapter import FAMILY_NAMES, Adapter

LIMIT = 2000  # characters of a statement; longer ones are documents, not metadata

_MADE_WITH, _CONSENT = "made_with", "consent"


def check_consent(text: str) -> None:
    """Raise InputError for a statement of more than LIMIT characters."""
    if len(text) > LIMIT:
        raise InputError(
            f"The consent has {len(text)} characters; expected at most {LIMIT}. Name the document "
            "that has the rest."
        )


def credited(
    adapter: Adapter, consent: str = "", made_with: bool = True, *, base: str = ""
) -> Adapter:
    """The adapter with what its files say about its making.

    consent: who agreed to the training, in the user's words; empty keeps what it says already.
    made_with: name this program, in an adapter that it trained. base: the base model's name.
    Raises as `check_consent`.
    """
    check_consent(consent)
    info = {key: value for key, value in adapter.info.items() if key != _MADE_WITH}
    if made_with and "steps" in info:  # one of another program tells no steps
        info[_MADE_WITH] = PROGRAM
    if consent.strip():
        info[_CONSENT] = " ".join(consent.split())
    if base:
        info["base"] = base
    return replace(adapter, info=info)


def description(adapter: Adapter) -> str:
    """One line for the file's metadata, which other programs show; empty where nothing is told."""
    return " ".join(
        [
            *([f"Made with {made}."] if (made := adapter.info.get(_MADE_WITH)) else []),
            *([f"Consent: {agreed}"] if (agreed := adapter.info.get(_CONSENT)) else []),
        ]
    )


def model_card(adapter: Adapter, title: str) -> str:
    """A page in Markdown to share the adapter with."""
    parts = [f"# {title}", _what(adapter), "\n".join(_table(adapter)), _use(adapter)]
    if {of.role for of in adapter.concepts} == {"subject", "style"}:
        prompts = adapter.prompt(), adapter.prompt("subject")
        parts.append("Prompts, of both and of the person alone:")
        parts += [f"```\n{as_embeddings(of, adapter.concepts)}\n```" for of in prompts]
    return "\n\n".join(parts) + "\n"


def _what(adapter: Adapter) -> str:
    made = f", made with {of}" if (of := adapter.info.get(_MADE_WITH)) else ""
    tokens = len(adapter.tokens)
    beside = {0: "", 1: " and one token"}.get(tokens, f" and {tokens} tokens")
    return f"A LoRA{beside} for {FAMILY_NAMES[adapter.family]}{made}."


def _table(adapter: Adapter) -> Iterator[str]:
    """What is known about the training, a row each."""
    info = adapter.info
    told = {
        "base model": info.get("base"),
        "architecture": FAMILIES[adapter.family].architecture,
        "tokens": ", ".join(f"`{name}`" for name in adapter.stock_names),
        "recipe": adapter.recipe.name if adapter.recipe else None,
        "steps": info.get("steps"),
        "seed": info.get("seed"),
        "consent": info.get(_CONSENT),
    }
    yield "| | |\n|---|---|"
    yield from (f"| {name} | {_cell(value)} |" for name, value in told.items() if value)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _use(adapter: Adapter) -> str:
    files = "the LoRA into `models/loras`"
    if adapter.tokens:
        files += " and the embeddings into `models/embeddings`"
    return f"In ComfyUI: put {files}, and load the LoRA with *Load LoRA*."
