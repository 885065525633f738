"""What every node is: a class whose errors name it, and a schema whose id follows its title."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from comfy_api.latest import io

from ..magicapture.errors import MagiCaptureError
from ._comfy.host import titled

_KNOWN = {field.name for field in fields(io.Schema)}  # search_aliases are newer than 0.3.64


class Node(io.ComfyNode):
    """A node of the pack: our own errors begin with its title."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        execute = cls.__dict__.get("execute")
        # ComfyUI copies the class for each run; the copy's `execute` is wrapped already.
        if execute is not None and not hasattr(execute.__func__, "__wrapped__"):
            cls.execute = classmethod(_naming(execute.__func__))


def _naming(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    @wraps(execute)
    def named(cls: type[Node], *args: Any, **inputs: Any) -> io.NodeOutput:
        try:
            return execute(cls, *args, **inputs)
        except MagiCaptureError as error:
            shown = titled(error, cls.define_schema().display_name)
            raise shown.with_traceback(error.__traceback__) from error.__cause__

    return named


def refusal(check: Callable[..., object], *values: Any) -> bool | str:
    """What `validate_inputs` answers: True, or our own error's text, before anything runs.

    A value that comes over a link is None, and is looked at when the node runs.
    """
    try:
        if None not in values:
            check(*values)
    except MagiCaptureError as error:
        return str(error)
    return True


def id_of(title: str) -> str:
    """A node's id: MagiCapture and the words of its title, capitalised and joined.

    The title's own "MagiCapture" and what stands in brackets are left out.
    """
    words = re.findall(r"[A-Za-z0-9]+", re.sub(r"\(.*?\)|MagiCapture", "", title))
    return "MagiCapture" + "".join(word[0].upper() + word[1:] for word in words)


def schema(title: str, room: str, *, aliases: str, **given: Any) -> io.Schema:
    """A node's schema: `room` is its place in the menu; `aliases`, by commas, find it as well."""
    if "search_aliases" in _KNOWN:
        given["search_aliases"] = aliases.split(", ")
    return io.Schema(
        node_id=id_of(title), display_name=title, category=f"MagiCapture/{room}", **given
    )
