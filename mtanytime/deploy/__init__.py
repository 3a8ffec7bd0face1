"""Carry a trained network elsewhere: graphs for ONNX Runtime, with one file that runs them without torch."""

from mtanytime.deploy.export import export

__all__ = ["export"]
