"""Short ways for eager mode, where an op on small tensors costs less than the machinery around it.

A public function goes them where nothing traces it: torch.compile and torch.export see the registered op instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

below_autograd = torch._C._AutoDispatchBelowAutograd
"""Context in which an op is called without the autograd registered for it: for one that needs no gradient, or inside
the forward of a torch.autograd.Function."""

# A torch that does not tell: there may be hooks, and the graph may be kept.
_saved_tensor_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_tracing: True)
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def saves_alone() -> bool:
    """Inside a forward: what it saves for the backward pass is shown to nobody (torch.autograd.graph's hooks)."""
    return _saved_tensor_hooks(True) is None


def may_overwrite(grad: Tensor) -> bool:
    """Inside a backward that got `grad`: results may be written into tensors that are there.

    Not where they need a gradient, for a batch of gradients (is_grads_batched), nor while anything traces.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or type(grad) is not Tensor
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.is_legacy_batchedtensor(grad)
        or torch._C._functorch.is_functorch_wrapped_tensor(grad)
    )


def may_overwrite_saved(grad: Tensor) -> bool:
    """Inside a backward on the CPU that got `grad`: nobody will read again what the forward pass saved for it.

    That is so without retain_graph; never on a GPU, where a captured graph may run this backward twice.
    """
    return grad.is_cpu and not _keeps_graph() and may_overwrite(grad)
