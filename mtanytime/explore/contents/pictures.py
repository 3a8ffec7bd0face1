"""Pictures in a page, made ahead of time: of tables that have no explorer of their own, or beside one."""

import base64
from collections.abc import Sequence

from mtanytime.explore import draw
from mtanytime.explore.contents.common import Contents


def picture_contents(title: str, summary: str, pictures: Sequence[draw.Picture], note: str = "") -> Contents:
    """Return what a page of pictures shows."""
    return {"kind": "pictures", "title": title, "summary": summary, "note": note, "pictures": in_page(*pictures)}


def in_page(*pictures: draw.Picture) -> list[Contents]:
    """Return pictures as data URIs with their alternative texts, which contents of any kind may hold as `pictures`."""
    uris = ("data:image/png;base64," + base64.b64encode(picture.png(dpi=110)).decode() for picture in pictures)
    return [{"uri": uri, "alt": picture.alt} for uri, picture in zip(uris, pictures, strict=True)]
