"""The pages of job=serve: one to ask about an image, one that lists the addresses. Both load nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from markupsafe import Markup

from finetune.pages.environment import FOLDER, render


def _hash(text: str) -> Markup:
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")


@cache
def serve_page(needs_token: bool) -> tuple[str, str]:
    """The page, and its Content-Security-Policy: its own script alone, and requests to its own server."""
    script = "\n" + (FOLDER / "serve.js").read_text(encoding="utf-8")
    script_hash = _hash(script)
    html = render("serve.html.j2", needs_token=needs_token, script=Markup(script), script_hash=script_hash)
    return html, policy(f"img-src data:; connect-src 'self'; script-src {script_hash}")


def api_page(document: Mapping[str, Any]) -> tuple[str, str]:
    """The addresses of an OpenAPI document, and the page's Content-Security-Policy."""
    entries = [
        {"path": path, "method": method.upper(), **about}
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    ]
    return render("serve_api.html.j2", info=document["info"], entries=entries), policy("")


def policy(more: str) -> str:
    """Nothing but what `more` allows, and the style in the page."""
    fixed = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"{fixed}; {more}" if more else fixed
