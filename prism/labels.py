"""Write models and plans as short text, for tables, figures and messages."""

from prism.plan import ExecutionPlan, Mode


def short(model: str) -> str:
    """A model's name without its folders."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def plan_label(plan: ExecutionPlan) -> str:
    """Name a plan by what sets it apart from others of a map; defaults are left out."""
    if plan.ranks == 1:
        return "local"
    kind = "first+means" if plan.mode is Mode.FIRST_AND_MEANS else "means"
    parts = [f"{kind} L={plan.segments}" if plan.segments else plan.mode.value, plan.wire, f"P={plan.devices}"]
    if plan.weights:
        parts.append("weights " + ":".join(f"{weight:g}" for weight in plan.weights))
    parts += [plan.collective] if plan.collective != "auto" else []
    parts += ["embed each"] if plan.embed == "each" else []
    parts += [] if plan.overlap else ["no overlap"]
    return " ".join(parts)
