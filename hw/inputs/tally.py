"""Running sums of a run's scores over its inputs. No torch."""

import msgspec


class PredictedLabel(msgspec.Struct, frozen=True, kw_only=True):
    """An input, its label where it has one, and the model's answer in words."""

    name: str
    label: str | None
    predicted: str
    probability: float | None


class Tally(msgspec.Struct, kw_only=True):
    """Sums over distinct samples. kind: "top-1", "token" or "cosine"."""

    samples: int = 0
    compared: int = 0
    agreeing: float = 0.0
    labelled: int = 0
    correct: int = 0
    max_rel_error: float = 0.0
    kind: str = "top-1"
    predictions: list[PredictedLabel] = []

    @property
    def agreement(self) -> float:
        """Share of samples or tokens with the local model's answer, or mean cosine; NaN before any."""
        return self.agreeing / self.compared if self.compared else float("nan")

    @property
    def top1(self) -> float | None:
        """Share of right labels; None without labels."""
        return self.correct / self.labelled if self.labelled else None
