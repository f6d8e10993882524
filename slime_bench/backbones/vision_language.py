"""What is known of BLIP, ALBEF and LLaVA before their weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.base import InFolder, Precision, VisionLanguage, VlmFacts, patch_grid
from slime_bench.backbones.llava_text import Conversation, Geometry, Templates, read_geometry
from slime_bench.backbones.weights import CONFIG, LLAVA, VlmLayout, read_json, unusable
from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.errors import BackboneError


class Blip(InFolder, VisionLanguage):
    """BLIP for image-text matching (Li et al., ICML 2022): any `BlipForImageTextRetrieval`, the released ones,
    `mini_blip`, a folder of one's own."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.blip.BlipBackbone"
    layout = VlmLayout()
    kind: ClassVar[str] = "blip"
    """What `config.json` calls such a model."""
    fusion: ClassVar[bool] = False
    """Whether its first text layers see text alone; `config.json` says how many, and the weights have no more."""

    @dataclass
    class Config:
        """Settings of a BLIP.

        Args:
            name: in tables and result files.
            weights: bundled name, folder, or hub id.
            revision: commit of a hub id; null for its main branch.
            image_size: side in pixels that images are brought to, a multiple of the patch. Position embeddings of
                another size are resized, bicubically, by the library.
            dtype: precision of the frozen weights.
            statistics: pixel mean and standard deviation: `imagenet`, as the authors' code, or the model's `own`
                (`preprocessor_config.json`, else CLIP's, which BLIP was trained with).
        """

        name: str = "mini_blip"
        weights: str = field(default="mini_blip", metadata=located("backbone"))
        revision: str | None = field(default=None, metadata=NO_NUMBERS)
        image_size: Annotated[int, Field(ge=1)] = 128
        dtype: Precision = "fp32"
        statistics: Literal["imagenet", "own"] = "imagenet"

    @classmethod
    def describe(cls, config: Config) -> VlmFacts:
        """What can be known from the JSON files alone.

        Raises:
            BackboneError: files that are missing or of another kind, or an image size that the patches do not divide.
        """
        return cls.read_folder(cls.folder_of(config), config.image_size)[1]

    @classmethod
    def read_folder(cls, folder: Path, image_size: int) -> tuple[Any, VlmFacts]:
        """The library's `BlipConfig` of a folder, in which keys that the file leaves out have the library's defaults,
        and the facts of `describe`.

        Raises:
            BackboneError: as `describe`.
        """
        from transformers import BlipConfig

        from slime_bench.backbones.load import guarded

        path = folder / CONFIG
        content = read_json(path)
        first = content.get("fusion_layer") if cls.fusion else 0
        if content.get("model_type") != cls.kind or type(first) is not int:
            raise unusable(path, f"model_type {content.get('model_type')!r}, fusion_layer {first!r}", cls.kind)
        architecture = guarded("configuration", path, lambda: BlipConfig.from_dict({**content, "model_type": "blip"}))
        text = architecture.text_config
        names = tuple(f"layer.{index}" for index in range(first, text.num_hidden_layers))
        if first < 0 or not names:
            raise unusable(path, f"fusion_layer {first}, with {text.num_hidden_layers} text layers")
        limit = int(text.max_position_embeddings)
        settings = folder / "tokenizer_config.json"
        stated = read_json(settings).get("model_max_length") if settings.is_file() else None
        if isinstance(stated, int | float) and 0 < stated < limit:
            limit = int(stated)
        facts = VlmFacts(names, patch=int(architecture.vision_config.patch_size), num_tokens=limit)
        patch_grid((image_size, image_size), facts.patch)
        return architecture, facts


class Albef(Blip):
    """ALBEF (Li et al., NeurIPS 2021), in BLIP's stock modules: half of its text layers see text alone, the others
    (`layer.6` to `layer.11`) look at the image. The authors' `.pth` is converted once, by `data_prep.convert_albef`."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.blip.AlbefBackbone"
    layout = VlmLayout(
        "convert the authors' checkpoint once and name the folder:\n"
        "    python -m data_prep.convert_albef --checkpoint refcoco.pth --out <folder>\n"
        "  then backbone.weights=<folder>"
    )
    kind = "albef"
    fusion = True

    @dataclass
    class Config(Blip.Config):
        """Settings of an ALBEF: those of a BLIP. `weights` is a folder that `data_prep.convert_albef` has written, or a
        hub id of such a one; its own pixel statistics are CLIP's."""

        name: str = "albef"
        weights: str = field(default="albef", metadata=located("backbone"))
        image_size: Annotated[int, Field(ge=1)] = 384
        statistics: Literal["imagenet", "own"] = "own"


class Llava(InFolder, VisionLanguage):
    """LLaVA 1.5 in the library's own layout; see `slime_bench.backbones.llava`."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.llava.LlavaBackbone"
    layout = LLAVA

    @dataclass
    class Config:
        """Settings of a LLaVA.

        Args:
            name: in tables and result files.
            weights: folder, bundled name, or hub id.
            revision: commit of a hub id; null for its main branch.
            image_size: side of the images that the data set hands out, pixels; the backbone resizes what differs from
                its vision tower's.
            dtype: precision of the frozen weights; 7 billion of them are 28 GB in fp32, 14 GB in bf16 or fp16.
            templates: the conversation around a prompt, and the answers that give the match probability.
            prompts_per_call: prompts that share one call of the attention kernel. More of them are fewer calls; the
                mask and the work of a call grow with its square.
        """

        name: str = "llava15_7b"
        weights: str = field(default="llava-hf/llava-1.5-7b-hf", metadata=located("backbone"))
        revision: str | None = field(default=None, metadata=NO_NUMBERS)
        image_size: Annotated[int, Field(ge=1)] = 336
        dtype: Precision = "bf16"
        templates: Templates = field(default_factory=Templates)
        prompts_per_call: Annotated[int, Field(ge=1)] = field(default=8, metadata=NO_NUMBERS)

    @classmethod
    def describe(cls, config: Config) -> VlmFacts:
        """What can be known from the JSON files alone, the tokeniser's among them.

        Raises:
            BackboneError: files that are missing or of another kind, or a conversation that does not fit.
        """
        return cls.read_folder(cls.folder_of(config), config.templates)[2]

    @classmethod
    def read_folder(cls, folder: Path, templates: Templates) -> tuple[Geometry, Conversation, VlmFacts]:
        """What the JSON files of a folder fix, the conversation in the model's tokens, and the facts of `describe`.

        Raises:
            BackboneError: as `describe`.
        """
        from transformers import AutoTokenizer

        from slime_bench.backbones.load import guarded

        geometry = read_geometry(folder)
        tokenizer = guarded("tokeniser", folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))
        conversation = Conversation(tokenizer, templates, geometry.image_token)
        left = geometry.positions - geometry.image_tokens - len(conversation)
        if left < 1:
            raise BackboneError(
                "the conversation leaves no room for a prompt", path="backbone.templates.conversation",
                found=f"{len(conversation)} tokens beside {geometry.image_tokens} of the image",
                expected=f"fewer than {geometry.positions} together", remedy="shorten the conversation",
            )  # fmt: skip
        layers = tuple(f"layer.{index}" for index in range(geometry.layers))
        return geometry, conversation, VlmFacts(layers, geometry.patch, left, image_size=geometry.side)
