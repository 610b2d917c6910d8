"""The noise of a secure sum: every site adds a discrete Gaussian share to its integers, and the shares make one Gaussian mechanism.

*Share.* Of ``n`` sites that are sure to answer honestly (the quorum less the tolerated drop-outs; 1 in trust mode ``local``), each adds N_Z(0,
std^2 / n), so any total over at least ``n`` of them carries a variance of ``std^2`` or more. Sites beyond ``n`` only add noise, and at most
``quorum - n`` of those that answered may drop out, collude or leave their share away. Who sees the masked total, a researcher or the coordinator,
is charged ``std``; who sees one site's vector alone is charged ``std / sqrt(n)``.

*One share.* Draw Z from the continuous N(0, v^2 - s^2), s = :data:`ROUNDING`, then an integer y with probability proportional to exp(-(y - Z)^2 /
2s^2). By Poisson summation the normaliser is the same for every Z within a factor 1 +- 2 exp(-2 pi^2 s^2) (Canonne, Kamath, Steinke 2020, use it
alike), so y is N_Z(0, v^2) within that factor: 1e-76 a number. This rounding commutes with adding integers. The discrete mechanism is therefore
post-processing of the continuous Gaussian of standard deviation sqrt(v^2 - s^2), in any dimension and for any accountant, and is charged as such.

*Their sum.* N_Z(0, v^2) added n times is N_Z(0, n v^2) within a factor exp(tau) a number, tau = 10 sum_{k<n} exp(-2 pi^2 v^2 k / (k + 1))
(Kairouz, Liu, Steinke 2021): below 1e-17000 while a share has v >= :data:`MIN_GRID`, which the plan's pricing and the door both demand. Skellam
shares would add up exactly, but need Poisson draws with means of millions from a secure source; OpenDP's sampler of the discrete Gaussian is
exact and reviewed.

*Accounting.* A step is a ``GaussianDpEvent(m)``, m = std / L2 sensitivity of one patient after that charge: 1 / (2 m^2)-zCDP. The ledger keeps
events; epsilon comes from their privacy loss distributions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MIN_GRID = 64  #: units that the standard deviation of one share has at least
ROUNDING = 3.0  #: standard deviation, in units, that the grid is charged
GRID_CUSHION = math.sqrt(1 - (ROUNDING / MIN_GRID) ** 2)  #: of a noise multiplier, at the coarsest grid


def discrete_gaussian(std: float, size: int) -> NDArray[np.int64]:
    """OpenDP's exact discrete Gaussian (Canonne, Kamath, Steinke 2020) from the operating system's randomness: ``size`` int64 draws."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    draws = dp.m.make_gaussian(*space, scale=float(std))([0] * size)
    return np.asarray(draws, np.int64)
