"""Carry a trained network elsewhere: graphs for ONNX Runtime, with one file that runs them without torch."""

from mtanytime.deploy.export import export
from mtanytime.deploy.page import export_page

__all__ = ["export", "export_page"]
