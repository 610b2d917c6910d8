"""The release gate: a study's thresholds against what the evaluation found. Fails closed."""

from __future__ import annotations

from typing import Any

from medsynx.study import GateSpec

#: of a study that nothing private was measured for: it cannot be released
CLOSED: dict[str, Any] = {"passed": False, "checks": []}


def check(gate: GateSpec, figures: dict[str, Any] | None) -> dict[str, Any]:
    """``{"passed", "checks"}``: a threshold whose figure is absent or not reliable is not met, nor is a distance or memorisation finer than
    what its noise can tell from 0 (``resolution``). Without thresholds the gate is open."""
    checks = []
    for figure, threshold, smaller_is_better in (
        ("tvd1", gate.max_tvd1, True),
        ("tvd2", gate.max_tvd2, True),
        ("tstr_auc", gate.min_tstr_auc, False),
        ("memorisation", gate.max_memorisation, True),
    ):
        if threshold is None:
            continue
        found = (figures or {}).get(figure) or {}
        value = found.get("value")
        met = (
            value is not None
            and found.get("reliable", True)
            and (max(value, found.get("resolution", 0)) <= threshold if smaller_is_better else value >= threshold)
        )
        checks.append({"name": figure, "threshold": threshold, "value": value, "passed": bool(met)})
    return {"passed": all(c["passed"] for c in checks), "checks": checks}
