"""`libra doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Doctor:
    """Print versions, devices and what is compiled, and try each operation once."""

    def __call__(self) -> int:
        from libra_det.doctor import doctor

        return 0 if doctor() else 1
