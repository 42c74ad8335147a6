"""JSON in a picture's XMP packet: the place for other programs' data in JPEG and WebP.

Source: XMP Specification, part 1 (the packet) and part 3 (JPEG).
"""

from __future__ import annotations

import re
from html import escape, unescape  # those of xml.sax import half a web client

LONGEST = 65_502  # bytes that a JPEG's segment holds
NAMESPACE = "urn:aid:picture"
FOREIGN = re.compile("[\ufffe\uffff]")  # what XML has no place for
HEAD = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:aid="{NAMESPACE}">'
)
TAIL = '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'


def xmp_packet(name: str, json: str) -> bytes:
    """A packet with one property, `aid:NAME`."""
    plain = FOREIGN.sub(lambda found: f"\\u{ord(found[0]):04x}", json)
    return f"{HEAD}<aid:{name}>{escape(plain, quote=False)}</aid:{name}>{TAIL}".encode()


def read_xmp(packet: object, name: str) -> str:
    """The property's text; empty for what is no packet, or has none."""
    if not isinstance(packet, bytes):
        return ""
    found = re.search(rb"<aid:%b>([^<]*)</aid:%b>" % (name.encode(), name.encode()), packet)
    return unescape(found[1].decode("utf-8", "replace")) if found else ""
