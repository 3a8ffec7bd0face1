"""The run-time check of every signature in tests; an int is accepted for a float (PEP 484)."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

numbers_as_usual = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_jaxtyped = jaxtyping.jaxtyped
_SCOPE = _jaxtyped("context")  # of the names of axes; it holds no state of its own


def jaxtyped(decorated: Any = None, *, typechecker: Callable = numbers_as_usual) -> Any:
    """Check as `jaxtyping.jaxtyped` does, in a fifth of the time.

    jaxtyping binds the arguments and checks them twice in each call, which takes longer than a small training's steps.
    Only annotations that name an argument, such as "{size}", need that, and generators, which beartype would check when
    they begin; other functions are checked once, in a scope of their own for the names of axes.
    """
    if decorated is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if isinstance(decorated, type):
        made_here = getattr(decorated.__init__, "__globals__", {}).get("__name__") in (__name__, _jaxtyped.__module__)
        if dataclasses.is_dataclass(decorated) and not made_here:
            decorated.__init__ = jaxtyped(decorated.__init__, typechecker=typechecker)
        return decorated
    simple = inspect.isfunction(decorated) and not inspect.isgeneratorfunction(decorated)
    if not simple or "{" in str(inspect.signature(decorated)):
        return _jaxtyped(decorated, typechecker=typechecker)
    checked = typechecker(decorated)
    if checked is decorated:
        return decorated  # it has no annotations

    @functools.wraps(decorated)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return decorated(*args, **kwargs)
        with _SCOPE:
            return checked(*args, **kwargs)

    return scoped


def unchecked(function: Callable) -> Callable:
    """The function without the type check, to test the library's own error for a value of the wrong type."""
    return inspect.unwrap(function)
