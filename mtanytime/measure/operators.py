"""Count multiply-adds operator by operator, and name every operator whose work torch's flop counter leaves out.

torch's counter knows matrix products, convolutions and attention. Here are formulas for further operators; an operator
that multiplies and has no formula is reported, so that no count is too low without notice.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

Sizes = Any  # of a tensor; the counter hands shapes to its formulas, not tensors

# Operators of torch that multiply, have no formula and cannot be taken apart.
_MULTIPLYING = {
    "aten::_cdist_forward",
    "aten::_int_mm",
    "aten::_sparse_addmm",
    "aten::_sparse_mm",
    "aten::_sparse_semi_structured_mm",
    "aten::_weight_int4pack_mm",
    "aten::_weight_int8pack_mm",
    "aten::conv_tbc",
    "aten::_fft_c2c",
    "aten::_fft_r2c",
    "aten::_fft_c2r",
    "aten::linalg_lu_factor_ex",
    "aten::_linalg_solve_ex",
    "aten::linalg_cholesky_ex",
    "aten::linalg_inv_ex",
    "aten::linalg_qr",
    "aten::_linalg_eigh",
    "aten::_linalg_svd",
    "aten::mkldnn_linear",
    "aten::mkldnn_rnn_layer",
    "aten::miopen_rnn",
    "aten::_cudnn_rnn",
}
# Operators outside torch's core that do no multiply-adds worth counting.
_FREE = {
    "torchvision::nms",
    "torchvision::roi_align",
    "torchvision::roi_pool",
    "torchvision::ps_roi_align",
    "torchvision::ps_roi_pool",
}
_COUNTED_NAMESPACES = ("aten", "prim", "prims", "profiler", "inductor", "higher_order")


def _vector_product(a: Sizes, b: Sizes, *args: Any, out_shape: Sizes = None, **kwargs: Any) -> int:
    return 2 * prod(a)  # mv: every entry of the matrix; dot: every entry of the vector


def _added_vector_product(bias: Sizes, a: Sizes, b: Sizes, *args: Any, out_shape: Sizes = None, **kwargs: Any) -> int:
    return 2 * prod(a)


def _outer_product(bias: Sizes, a: Sizes, b: Sizes, *args: Any, out_shape: Sizes = None, **kwargs: Any) -> int:
    return 2 * prod(a) * prod(b)


def _trilinear(
    a: Sizes,
    b: Sizes,
    c: Sizes,
    expand_a: list[int],
    expand_b: list[int],
    expand_c: list[int],
    *args: Any,
    out_shape: Sizes = None,
    **kwargs: Any,
) -> int:
    """Σ over the product of all sizes: a·b, then times c, which sums up."""

    def expanded(sizes: Sizes, at: list[int]) -> list[int]:
        sizes = list(sizes)
        for axis in sorted(at):
            sizes.insert(axis, 1)
        return sizes

    shapes = zip(expanded(a, expand_a), expanded(b, expand_b), expanded(c, expand_c), strict=True)
    return 2 * prod(max(sizes) for sizes in shapes)


def _deformable(input: Sizes, weight: Sizes, *args: Any, out_shape: Sizes = None, **kwargs: Any) -> int:
    """As a convolution with the same weight; the interpolation of the inputs is not counted."""
    return 2 * out_shape[0] * prod(out_shape[2:]) * prod(weight)


def _convolution_backward(
    gradient: Sizes,
    maps: Sizes,
    weight: Sizes,
    bias: Sizes,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
    out_shape: Sizes = None,
    **kwargs: Any,
) -> int:
    """The gradients of maps and of weights each cost as much as the convolution; torch's formula ignores groups."""
    return sum(wanted[:2]) * conv_flop_count(maps, weight, gradient, transposed)


def formulas() -> dict[Any, Callable[..., int]]:
    """Formulas for torch's counter by operator, for its `custom_mapping`."""
    aten = torch.ops.aten
    found: dict[Any, Callable[..., int]] = {
        aten.mv: _vector_product,
        aten.dot: _vector_product,
        aten.vdot: _vector_product,
        aten.addmv: _added_vector_product,
        aten.addr: _outer_product,
        aten._trilinear: _trilinear,
        aten.convolution_backward: _convolution_backward,
    }
    if hasattr(torch.ops, "torchvision") and hasattr(torch.ops.torchvision, "deform_conv2d"):
        found[torch.ops.torchvision.deform_conv2d] = _deformable
    return found


class Count:
    """A running count: `macs` so far, and `uncounted`, the operators seen so far whose work it lacks."""

    def __init__(self, counter: FlopCounterMode, recorder: "_Recorder") -> None:
        self._counter, self._recorder = counter, recorder

    @property
    def macs(self) -> int:
        """Multiply-adds so far; a multiply-add is two flops."""
        return self._counter.get_total_flops() // 2

    @property
    def uncounted(self) -> list[str]:
        """Names of operators that multiply and are not in the count, sorted."""
        known = {
            packet._qualified_op_name for packet in self._counter.flop_registry if hasattr(packet, "_qualified_op_name")
        }
        return sorted(name for name in self._recorder.names - known if _multiplies(name))


class _Recorder(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if hasattr(func, "_overloadpacket"):
            self.names.add(func._overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


def _multiplies(name: str) -> bool:
    namespace = name.split("::")[0]
    return name in _MULTIPLYING if namespace in _COUNTED_NAMESPACES else name not in _FREE


@contextmanager
def counting(recurrent: bool = True) -> Iterator[Count]:
    """Count the multiply-adds of what runs in the block.

    Attention runs as the products it consists of, since fused kernels hide them. With `recurrent`, so do recurrent
    layers, at the price of slower convolutions.
    """
    counter, recorder = FlopCounterMode(display=False, custom_mapping=formulas()), _Recorder()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.callback(torch.backends.mkldnn.set_flags, torch.backends.mkldnn.set_flags(_enabled=False)[0])
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(recorder)
            stack.enter_context(counter)
            yield Count(counter, recorder)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
