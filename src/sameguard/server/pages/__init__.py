"""The dashboard's pages: plain HTML and SVG made on the server, one stylesheet, one small script that refreshes the page."""

from sameguard.server.pages.dashboard import STATIC_FILES, render_dashboard

__all__ = ["STATIC_FILES", "render_dashboard"]
