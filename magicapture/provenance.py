"""Where pictures and adapters come from, told inside their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

PROGRAM = f"MagiCapture {__version__}"

DRAWN_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""What IPTC's vocabulary of digital source types calls a picture that a trained model drew."""

_XMP_KEY = "XML:com.adobe.xmp"  # where a PNG keeps XMP: the XMP specification, part 3

_XMP = f"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="{PROGRAM}"
    Iptc4xmpExt:DigitalSourceType="{DRAWN_BY_A_MODEL}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def tell_maker(texts: PngInfo) -> None:
    """Add who drew a picture to a PNG's texts: a line, and IPTC's source type as XMP.

    Programs that label pictures of AI models look for the latter.
    """
    texts.add_text("Software", PROGRAM)
    texts.add_itxt(_XMP_KEY, _XMP)
