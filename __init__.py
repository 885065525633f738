"""MagiCapture for ComfyUI. ComfyUI asks for `comfy_entrypoint`; nothing is imported before."""

import logging

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension; an error on the way is logged whole, since ComfyUI shows one line."""
    try:
        from .nodes import MagiCaptureExtension
    except Exception:
        logging.getLogger(__name__).exception("MagiCapture's nodes could not be loaded")
        raise
    return MagiCaptureExtension()
