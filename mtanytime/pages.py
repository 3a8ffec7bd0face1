"""What every HTML page of ours begins with: one file, which allows its own style and script alone and loads nothing."""

import base64
import hashlib

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
"""


def content_policy(style: str, script: str, images: str = "data:", scripts: str = "") -> str:
    """The content policy of a page: no request, and no style or script but these.

    A name that looks like markup could then do nothing even if it became markup. `images` are the sources of images,
    `scripts` further sources of scripts.
    """
    allowed = f"{_source(script)} {scripts}".strip()
    return (
        f"default-src 'none'; img-src {images}; style-src {_source(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    """The source that is this text alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
