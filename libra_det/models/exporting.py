"""Whether a model is on its way into a file that has to do without this package."""

import torch


def exporting() -> bool:
    """True under torch.export. Under torch.compile, which answers `is_exporting` with yes as well, it is False."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
