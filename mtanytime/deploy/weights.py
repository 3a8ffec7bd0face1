"""One file for the weights of many graphs: each tensor is stored once, in 32, 16 or 8 bits."""

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mtanytime.checks import require
from mtanytime.graphs import installed

Precision = Literal["float32", "float16", "int8"]
NAME = "weights.bin"
SMALLEST = 64  # numbers: smaller tensors, and all with one dimension, stay in their graph, in float32
ALIGNED = 64  # bytes: where a tensor may start, as processors like to read it


class SharedWeights:
    """Move the weights of ONNX models into one file, `folder/weights.bin`, that all of them refer to.

    Args:
        folder: of the models, whose files must be beside the weights.
        precision: "float32" keeps the weights as they are. "float16" and "int8" round what is stored; a cast (and, for
            int8, a factor for each output channel, after the largest weight) turns it into float32 again. Runtimes
            compute both once, when they load a model, so it answers as fast as before.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(self, folder: Path, precision: str = "float32") -> None:
        require(precision in get_args(Precision), "precision", f"one of {get_args(Precision)}", precision)
        self.file, self.precision = folder / NAME, precision
        self.file.touch()
        self._places: dict[bytes, tuple[int, int]] = {}  # digest of the content -> offset, length

    def move(self, model: Any) -> int:
        """Move the weights of an `onnx.ModelProto`, which is changed. Returns the bytes of what it refers to."""
        onnx = installed("onnx")[0]
        kept, nodes, used = [], [], {}
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            small = array.dtype != np.float32 or array.ndim < 2 or array.size < SMALLEST
            if small or not np.isfinite(array).all():  # a mask with -inf cannot be rounded
                kept.append(tensor)
                continue
            stored, restoring, small = self._stored(onnx, tensor.name, array)
            content = stored.tobytes()
            offset, length = self._write(content)
            used[offset] = length
            name = tensor.name if not restoring else f"{tensor.name}.stored"
            moved = onnx.TensorProto(name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(stored.dtype))
            moved.dims.extend(stored.shape)
            moved.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", NAME), ("offset", offset), ("length", length)):
                moved.external_data.add(key=key, value=str(value))
            kept += [moved, *small]
            nodes += restoring
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        later = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes + later)
        return sum(used.values())

    def _stored(self, onnx: Any, name: str, array: np.ndarray) -> tuple[np.ndarray, list[Any], list[Any]]:
        """What to store of a tensor, the nodes that restore it, and the small tensors that these need."""
        if self.precision == "float32":
            return array, [], []
        node = onnx.helper.make_node
        if self.precision == "float16":
            half = np.clip(array, *(np.finfo(np.float16).min, np.finfo(np.float16).max)).astype(np.float16)
            return half, [node("Cast", [f"{name}.stored"], [name], to=onnx.TensorProto.FLOAT)], []
        largest = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True)
        least = 127 * np.finfo(np.float32).tiny  # what is smaller is 0, as its factor would be
        factor = np.where(largest > least, largest, 1).astype(np.float32) / np.float32(127)
        whole = np.clip(np.rint(array / factor), -127, 127).astype(np.int8)
        nodes = [
            node("Cast", [f"{name}.stored"], [f"{name}.whole"], to=onnx.TensorProto.FLOAT),
            node("Mul", [f"{name}.whole", f"{name}.factor"], [name]),
        ]
        return whole, nodes, [onnx.numpy_helper.from_array(factor, f"{name}.factor")]

    def _write(self, content: bytes) -> tuple[int, int]:
        """Where a content is in the file, to which it is added unless it is there."""
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            with self.file.open("ab") as file:
                file.write(b"\0" * (-file.tell() % ALIGNED))
                self._places[key] = (file.tell(), len(content))
                file.write(content)
        return self._places[key]
