"""Write models and plans as short text, for tables, figures and messages."""

from collections.abc import Sequence

import msgspec

from prism.plan import LOCAL, ExecutionPlan, Mode

HABITS = ("collective", "embed", "overlap")  # fields of a plan that say how it exchanges, not what


def short(model: str) -> str:
    """A model's name without its folders."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def way(plan: ExecutionPlan) -> str:
    """Name what a plan splits, without how: local, or replicas, stages, parts, or some of them."""
    return " x ".join(_splits(plan)) or "local"


def mode_label(plan: ExecutionPlan) -> str:
    """Name a plan's way by what its parts exchange, as counters and messages do: full, or replicas x full."""
    return " x ".join(plan.mode.value if name == "parts" else name for name in _splits(plan)) or "local"


def _splits(plan: ExecutionPlan) -> dict[str, int]:
    """What a plan splits, and in how many."""
    counts = {"replicas": plan.replicas, "stages": plan.stages, "parts": plan.parts}
    return {name: count for name, count in counts.items() if count > 1}


def plan_label(plan: ExecutionPlan) -> str:
    """Name a plan by what sets it apart from others of a map; defaults are left out."""
    if plan.ranks == 1:
        return "local"
    split = " x ".join(f"{count} {name}" for name, count in _splits(plan).items())
    habits = [_exchanged(plan)] if plan.parts > 1 else []
    habits += [plan.wire] if plan.wire != "fp32" else []
    if plan.weights:
        habits.append("weights " + ":".join(f"{weight:g}" for weight in plan.weights))
    if plan.boundaries:
        habits.append("from blocks " + ",".join(map(str, plan.boundaries)))
    habits += [f"microbatch {plan.microbatch}"] if plan.microbatch else []
    habits += [plan.collective] if plan.collective != "auto" else []
    habits += ["embed each"] if plan.embed == "each" else []
    habits += [] if plan.overlap else ["no overlap"]
    return f"{split}, {' '.join(habits)}" if habits else split


def _exchanged(plan: ExecutionPlan) -> str:
    """What the parts of a plan exchange."""
    kind = "first+means" if plan.mode is Mode.FIRST_AND_MEANS else "means"
    return f"{kind} L={plan.segments}" if plan.segments else plan.mode.value


def without_habits(plan: ExecutionPlan) -> ExecutionPlan:
    """Take a plan as if it exchanged by default, whatever collective, embedding and overlap it has."""
    return msgspec.structs.replace(plan, **{name: getattr(LOCAL, name) for name in HABITS})


def shared_habits(plans: Sequence[ExecutionPlan]) -> list[str]:
    """Name how all of these plans exchange, where that is one way and not the default one."""
    sharing = [plan for plan in plans if plan.parts > 1 or plan != without_habits(plan)]
    tails = {plan_label(plan).removeprefix(plan_label(without_habits(plan))).strip(" ,") for plan in sharing}
    return [f"all plans: {tail}" for tail in tails if len(tails) == 1 and tail]
