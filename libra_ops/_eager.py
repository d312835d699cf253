"""Short ways for eager mode, where an op on small tensors costs less than the machinery around it.

A public function goes them where nothing traces it: torch.compile and torch.export see the registered op instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

below_autograd = torch._C._AutoDispatchBelowAutograd
"""Context in which an op is called without the autograd registered for it: for one that needs no gradient, or inside
the forward of a torch.autograd.Function."""

# A torch that does not tell: the graph may be kept.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def may_overwrite_saved(grad: Tensor) -> bool:
    """Inside a backward that got `grad`: nobody will read again what the forward pass saved for it.

    That is so without retain_graph. Not for a batch of gradients (is_grads_batched), nor while a compiler traces.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or _keeps_graph()
        or type(grad) is not Tensor
        or torch._C._functorch.is_legacy_batchedtensor(grad)
        or torch._C._functorch.is_functorch_wrapped_tensor(grad)
    )
