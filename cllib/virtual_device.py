"""A device that is not the CPU, for tests: `torch.device("virtual")`. What runs on an accelerator, runs on it.

It computes on the CPU with real values, so results can be compared with the CPU's, and behaves as an accelerator does
where programs go wrong:

- an operation that mixes its tensors with CPU tensors is refused, as CUDA refuses it (numbers of no dimension may join
  elementwise operations, an index may lie on the CPU);
- so is a draw on the device from a CPU generator, or on the CPU from one of the device (`randomness.generator` makes
  both);
- what makes an accelerator wait for the CPU (`.item()`, `.cpu()`, `.tolist()`, `nonzero`, a boolean index, a print) is
  counted in `fetches`, with the line that asked for it; what goes up (`.to(device)`, a list or a CPU index used on the
  device) in `uploads`.

    from cllib import virtual_device            # registers the device, for the rest of the process; before the first
                                                # backward pass, where torch counts its devices
    with virtual_device.alike():                # code that takes another path by device takes one path
        stream = stream.to("virtual"); network.to("virtual")
        ... train ...
    print(virtual_device.fetches.most_common(10))

How: a tensor subclass whose device is PyTorch's "PrivateUse1", renamed; operations with such a tensor arrive in
`__torch_dispatch__`, factory functions (`torch.zeros(3, device="virtual")`) in the fallback of that dispatch key, and
copies that torch makes below its Python layer in `_copy_from`.

What this cannot show: autocast, `torch.load(map_location="virtual")`, processes (tensors are pickled as CPU tensors),
compiled and captured steps, tensors resized in place (refused), speed.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from cllib import optim, randomness
from cllib.models.latent_vit import QuickDropout

NAME = "virtual"
CPU = torch.device("cpu")
fetches: Counter[str] = Counter()
uploads: Counter[str] = Counter()
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# These take a CPU tensor without dimensions beside the device's, as all elementwise operations do.
SCALARS = {*INDEXED, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.clamp_.Tensor}
# The shape or the value of what these give has to be known on the CPU.
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.bincount.default: "bincount",
    aten.equal.default: "equal",
    aten.allclose.default: "allclose",
    aten.is_nonzero.default: "bool",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.linalg_inv_ex.default: "inverse",
}


class VirtualTensor(Tensor):
    """A tensor on the virtual device; `on_cpu` has its values."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "VirtualTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.on_cpu = on_cpu
        return tensor

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return perform(op, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, VirtualTensor) or (value.shape, value.dtype) != (self.shape, self.dtype):
            raise NotImplementedError("`.data =` of another device, shape or type")
        self.on_cpu = value.on_cpu

    def tolist(self) -> Any:
        count(fetches, "tolist")
        return self.on_cpu.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a {NAME} tensor to numpy: use Tensor.cpu() first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy = VirtualTensor(self.on_cpu.clone()).requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(
        self, protocol: Any
    ) -> Any:  # `torch.save` writes CPU tensors, so checkpoints load with weights_only
        return self.on_cpu.__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        count(fetches, "print")
        return f"virtual({self.on_cpu!r})"


class VirtualGenerator(torch.Generator):
    """A generator of the device, which draws what the CPU's would."""

    known: ClassVar[WeakValueDictionary[int, torch.Generator]] = WeakValueDictionary()  # by where torch has them

    def __new__(cls, device: Any = None) -> "VirtualGenerator":
        made: Any = super().__new__(cls)
        cls.known[made._cdata] = made
        return made  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0)


class Draws(TorchFunctionMode):
    """Refuses a generator of the device where a draw stays on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, draws = function(*args, **(kwargs or {})), (kwargs or {}).get("generator")
        if isinstance(draws, VirtualGenerator) and not isinstance(made, VirtualTensor):
            raise RuntimeError(f"Expected a 'cpu' device type for generator but found '{NAME}'")
        return made


@contextmanager
def alike() -> Iterator[None]:
    """Equal bits need equal arithmetic: what takes another path by device takes the same one here on both.

    Optimisers are not fused, attention is not either, dropout is torch's; `network.double()` makes new parameters.
    """
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    dropout = patch.object(QuickDropout, "forward", nn.Dropout.forward)
    try:
        with sdpa_kernel(SDPBackend.MATH), patch.object(optim, "FUSED_ON", ()), dropout, Draws():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def count(counter: Counter[str], what: str) -> None:
    """Count it under the first line of the caller's that is not torch's or this file's."""
    frame: Any = sys._getframe(1)
    while frame and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    counter[f"{what} at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else what] += 1


def on_cpu(value: Any) -> Any:
    """The value with CPU tensors and the CPU in place of the virtual ones."""
    if isinstance(value, torch.device) and value.type == NAME:
        return CPU
    return value.on_cpu if isinstance(value, VirtualTensor) else value


def perform(op: Any, args: Any, kwargs: Any) -> Any:
    """Do on the CPU what was asked of the virtual device."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = any(isinstance(x, VirtualTensor) for x in tensors)
    target = kwargs.get("device")
    elsewhere = target is not None and torch.device(target).type != NAME
    if here and op not in COPIES:
        refuse_strangers(op, args, tensors)
    draws: Any = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Generator)), None)
    if draws is not None and not elsewhere and draws._cdata not in VirtualGenerator.known:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if op in WAITS:
        count(fetches, WAITS[op])
    if op is aten._to_copy.default and here == elsewhere:
        count(fetches if here else uploads, "cpu" if here else "to")
    if op is aten.copy_.default:
        if isinstance(args[0], VirtualTensor) != isinstance(args[1], VirtualTensor):
            count(uploads if isinstance(args[0], VirtualTensor) else fetches, "copy")
        op(*tree_map(on_cpu, args), **kwargs)
        return args[0]
    result = op(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    return result if elsewhere else wrapped(op, args, kwargs, result)


def refuse_strangers(op: Any, args: Any, tensors: list[Tensor]) -> None:
    """RuntimeError where a CPU tensor stands beside the device's and CUDA would not have it; indices are counted."""
    strangers = [x for x in tensors if not isinstance(x, VirtualTensor)]
    if op in INDEXED:  # an index may lie on the CPU; it goes up
        for index in args[1]:
            if index is not None and index.dtype == torch.bool and (op is aten.index.Tensor or args[2].dim()):
                count(fetches, "boolean index")
            if index is not None and not isinstance(index, VirtualTensor):
                count(uploads, "index")
        strangers = [x for x in strangers if all(x is not index for index in args[1])]
    scalars = op in SCALARS or torch.Tag.pointwise in op.tags
    if any(x.dim() or not scalars for x in strangers):
        shapes = [(tuple(x.shape), NAME if isinstance(x, VirtualTensor) else "cpu") for x in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but {op} was given {shapes}")


def wrapped(op: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The result as virtual tensors; an argument that was written to (in place, `out=`) is itself."""
    written: dict[int, VirtualTensor] = {}
    for place, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[place] if place < len(args) else None)
            written |= {id(x.on_cpu): x for x in tree_leaves(value) if isinstance(x, VirtualTensor)}
    for tensor in written.values():
        if tensor.shape != tensor.on_cpu.shape:
            raise NotImplementedError(f"{op} gives a tensor another shape in place")
    return tree_map(lambda x: written.get(id(x), VirtualTensor(x)) if type(x) is Tensor else x, result)


def copy_from(source: Tensor, into: Tensor, non_blocking: bool = False) -> Tensor:
    """Where torch copies below its Python layer (`torch.tensor([1, 2], device="virtual")`, `x[[0, 2]]`)."""
    count(uploads if isinstance(into, VirtualTensor) else fetches, "copy")
    on_cpu(into).copy_(on_cpu(source))
    return into


_setup_privateuseone_for_python_backend(NAME)
randomness.GENERATORS[NAME] = VirtualGenerator
_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(lambda op, *args, **kwargs: perform(op, args, kwargs), "PrivateUse1")
_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("_copy_from", copy_from, "PrivateUse1")
for _op in (aten.arange.default, aten.arange.start, aten.arange.start_step, aten.eye.default, aten.eye.m):
    _name = _op.name().removeprefix("aten::")  # torch makes them empty, then grows them
    _kernels.impl(_name, lambda *args, _op=_op, **kwargs: perform(_op, args, kwargs), "PrivateUse1")
