"""A device that is not there: tensors know a place, and whoever mixes places is told.

Under `Elsewhere()` a tensor is at `PLACE` if it was asked for there (`torch.zeros(3, device=PLACE)`), moved
there (`tensor.to(PLACE)`, `module.to(PLACE)`) or computed from such tensors. All numbers stay on the CPU, so
all is computed as ever; but what an accelerator refuses is refused: tensors of two places in one operation, a
CPU generator for numbers elsewhere, numpy. As there, single numbers and indices may come from the CPU.

Worker threads are not watched.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

PLACE = torch.device("mps:0")  # any kind of device that needs no more than its name
HERE = torch.device("cpu")

MOVES = {Tensor.to, Tensor.cpu, Tensor.type_as, torch.as_tensor}
# Into a place, from anywhere; or nothing is computed.
COPIES = {Tensor.copy_, Tensor.data.__set__, torch._has_compatible_shallow_copy_type}
INDEXES = {Tensor.__getitem__, Tensor.__setitem__}
BACKWARDS = {Tensor.backward, torch.autograd.backward, torch.autograd.grad}


class Mixed(RuntimeError):
    """What an accelerator would have said."""


class Elsewhere(TorchFunctionMode):
    """Watches every operation; `computed` counts those that happened at `PLACE`."""

    def __init__(self):
        super().__init__()
        self.storages = {}  # at PLACE; kept, so that no address is used twice
        self.computed = 0
        self.backward = False  # gradients on their way are made by nobody we know

    def place(self, tensor):
        return PLACE if tensor.untyped_storage()._cdata in self.storages else HERE

    def put(self, tensor, place, given=()):
        """Remember where a new tensor is; views are where they were."""
        storage = tensor.untyped_storage()
        if place == PLACE and storage._cdata not in given:
            self.storages[storage._cdata] = storage

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == Tensor.device.__get__:
            return self.place(args[0])
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if function in MOVES:
            return self.moved(function, args, kwargs)
        if function in BACKWARDS:
            return self.follow(function, args, kwargs)
        place = self.common(function, args, tensors)
        asked = kwargs.pop("device", None)
        if asked is not None:
            place = torch.device(asked)
            place = PLACE if place.type == PLACE.type else place
        drawn = kwargs.get("generator")
        if (drawn is not None and drawn.device != place) or (function is Tensor.numpy and place != HERE):
            raise Mixed(f"{name(function)} at {place} with numbers or a generator on the CPU")
        found = function(*args, **kwargs)
        self.computed += place == PLACE
        given = {tensor.untyped_storage()._cdata for tensor in tensors}
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.put(leaf, place, given)
        return found

    def common(self, function, args, tensors):
        """The one place of all that takes part."""
        places = {self.place(tensor) for tensor in tensors if tensor.ndim > 0 or self.place(tensor) == PLACE}
        if function in COPIES or function in INDEXES:
            own = self.place(args[0])
            value = self.place(args[2]) if function is Tensor.__setitem__ and many(args[2:]) else own
            if function in INDEXES and (
                (own == HERE and PLACE in places) or (many(args[1:2]) and value != own)
            ):
                raise Mixed(f"{name(function)}: {own} was given something at {places - {own}}")
            return own
        if len(places) > 1 and not self.backward:
            shapes = [(tuple(tensor.shape), str(self.place(tensor))) for tensor in tensors]
            raise Mixed(f"{name(function)}: tensors of two places, {shapes}")
        return PLACE if PLACE in places else HERE

    def moved(self, function, args, kwargs):
        """`to`, `cpu`, `type_as`, `as_tensor`: a copy where another place is asked for."""
        first, wanted = args[0], [*args[1:], kwargs.get("device"), kwargs.get("dtype")]
        now = self.place(first) if isinstance(first, Tensor) else HERE
        target, kind = HERE if function is Tensor.cpu else now, None
        for one in wanted:
            if isinstance(one, Tensor):
                target, kind = self.place(one), one.dtype
            elif isinstance(one, str | torch.device):
                target = PLACE if torch.device(one).type == PLACE.type else HERE
            elif isinstance(one, torch.dtype):
                kind = one
        found = torch.as_tensor(first, dtype=kind)
        if target != now:
            found = found.clone()
        self.put(found, target)
        return found

    def follow(self, function, args, kwargs):
        before, self.backward = self.backward, True
        try:
            found = function(*args, **kwargs)
        finally:
            self.backward = before
        if function is torch.autograd.grad:
            for gradient, variable in zip(found, tree_leaves(args[1]), strict=True):
                self.put(gradient, self.place(variable))
        return found


def many(arguments):
    """Whether there is a tensor of several numbers among them."""
    return any(isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in tree_leaves(arguments))


def name(function):
    return getattr(function, "__name__", str(function))
