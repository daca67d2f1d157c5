"""Register the model families: one row each, with the structure that the cost model counts and the adapter's place.

No torch here. A new family is a row of FAMILIES and its adapter in prism.nn.families.
"""

from typing import Literal, NamedTuple


class Structure(NamedTuple):
    """How the blocks of a family are built, as far as their kernels tell.

    norm: LayerNorm, or RMSNorm as transformers computes it.
    fused: queries, keys and values are counted as one matrix product. BERT's three are too: their FLOPs are the same.
    rotary: positions turn queries and keys in each block.
    gated: the MLP has a gate, which is a third matrix.
    activation: tensors that each kernel of the MLP's activation reads.
    """

    norm: Literal["layer", "rms"] = "layer"
    fused: bool = True
    rotary: bool = False
    gated: bool = False
    activation: tuple[int, ...] = (1,)


class Family(NamedTuple):
    """One family. A model belongs to it by its library and by what the adapter's class says.

    module, adapter: prism.nn.families.<module>.<adapter>.
    supported: the models, for the message that refuses any other.
    causal: a token sees only earlier ones.
    """

    name: str
    library: str
    module: str
    adapter: str
    supported: str
    causal: bool = False
    structure: Structure = Structure()


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "vit",
            library="timm",
            module="timm_vit",
            adapter="TimmViT",
            supported="timm VisionTransformer (ViT, DeiT, DINOv2; Block or ResPostBlock)",
        ),
        Family(
            "bert",
            library="transformers",
            module="bert",
            adapter="Bert",
            supported="transformers BERT (BertModel, BertFor...)",
        ),
        Family(
            "gpt2",
            library="transformers",
            module="gpt2",
            adapter="GPT2",
            supported="transformers GPT-2 (GPT2Model, GPT2LMHeadModel, GPT2For...)",
            causal=True,
            structure=Structure(activation=(1, 1, 2, 1, 1, 1, 1, 2)),  # gelu_new is a chain of kernels
        ),
        Family(
            "llama",
            library="transformers",
            module="llama",
            adapter="Llama",
            supported="transformers Llama (LlamaModel, LlamaFor...)",
            causal=True,
            structure=Structure(  # the activation is followed by the product with the gate
                norm="rms", fused=False, rotary=True, gated=True, activation=(1, 2)
            ),
        ),
    )
}
