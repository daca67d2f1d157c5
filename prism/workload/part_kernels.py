"""List the kernels of each part of a stage: of a block, of the embedding and of the head."""

from prism.partition import receivers
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from prism.workload.kernels import Kernel, attention, codec, elementwise, gemm, norm, rms_norm, rotary

Kernels = tuple[Kernel, ...]


class PartKernels:
    """What the parts of a stage compute for `samples` samples of `tokens` tokens.

    own, sent: rows of each part, and rows of them that it sends in a block. peers: parts that receive them.
    compress, project, attend: kernels of a block, by part; a part without peers compresses nothing.
    embed, head: kernels of the part that does it.
    """

    def __init__(self, model: ModelSpec, plan: ExecutionPlan, samples: int, tokens: int) -> None:
        self._model, self._wire, self._means = model, plan.wire, plan.segments is not None
        self._samples, self._tokens, parts = samples, tokens, range(plan.parts)
        self.own, self.sent = plan.partition(tokens).sizes, plan.sent_rows(tokens)
        self.peers = tuple(receivers(part, plan.parts, model.causal) for part in parts)
        self.compress = tuple(self._compress(part) if self.peers[part] else () for part in parts)
        self.project = tuple(self._project(part) for part in parts)
        self.attend = tuple(self._attend(part) for part in parts)
        self.embed, self.head = self._embed(), self._head()

    def values(self, rows: int) -> int:
        """Count the values of so many rows of each sample."""
        return self._samples * rows * self._model.width

    def recoded(self, part: int, *, decode: bool) -> Kernels:
        """List the kernels that encode (or decode) all rows of a part, for the next stage."""
        return codec(self._wire, self.values(self.own[part]), decode=decode)

    def _embed(self) -> Kernels:
        m, rows = self._model, self._samples * (self._tokens - self._model.prefix_tokens)
        return (gemm(rows, m.patch_values, m.width) if m.patch_values else elementwise(rows * m.width, 2),)

    def _head(self) -> Kernels:
        m = self._model
        read = self._samples * (1 if m.head != "all" else self._tokens)
        return (*self._norm(read), gemm(read, m.width, m.output_width)) if m.output_width else self._norm(read)

    def _compress(self, part: int) -> Kernels:
        means = (elementwise(self.values(self.own[part])),) if self._means else ()
        return (*means, *codec(self._wire, self.values(self.sent[part])))

    def _project(self, part: int) -> Kernels:
        m = self._model
        return self._projections(self._samples * self.own[part], m.width, m.kv_width, m.kv_width)

    def _norm(self, rows: int) -> Kernels:
        width = self._model.width
        return rms_norm(rows, width) if self._model.structure.norm == "rms" else (norm(rows, width),)

    def _projections(self, rows: int, *widths: int) -> Kernels:
        """Norm, projections to `widths`, and the rotation of all but the last, which is the values'."""
        width, structure = self._model.width, self._model.structure
        outputs = (sum(widths),) if structure.fused else widths
        turned = widths[:-1] if structure.rotary else ()
        return (
            *self._norm(rows),
            *(gemm(rows, width, output) for output in outputs),
            *(kernel for each in turned for kernel in rotary(rows * each)),
        )

    def _attend(self, part: int) -> Kernels:
        m, batch, own = self._model, self._samples, self.own[part]
        others = sum(sent for sent, peers in zip(self.sent, self.peers, strict=True) if part in peers)
        unpacking = codec(self._wire, self.values(others), decode=True) if others else ()
        remote = self._projections(batch * others, m.kv_width, m.kv_width) if others else ()
        rows = batch * own
        return (
            *unpacking,
            *remote,
            attention(own, own + others, m.width, batch),
            gemm(rows, m.width, m.width),
            elementwise(rows * m.width, 2),
            *self._norm(rows),
            *(gemm(rows, m.width, m.mlp_width),) * (2 if m.structure.gated else 1),
            *(elementwise(rows * m.mlp_width, reads) for reads in m.structure.activation),
            gemm(rows, m.mlp_width, m.width),
            elementwise(rows * m.width, 2),
        )
