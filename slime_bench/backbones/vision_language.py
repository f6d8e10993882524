"""What is known of BLIP, ALBEF and LLaVA before their weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.base import Precision, VisionLanguage, VlmFacts, patch_grid
from slime_bench.backbones.llava_text import Conversation, Geometry, Templates, read_geometry
from slime_bench.backbones.weights import CONFIG, LLAVA, VlmLayout, find, read_json, unusable
from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.errors import BackboneError


class _InFolder(VisionLanguage):
    """A model that is found as a folder.

    Attributes:
        layout: the files that it consists of.
    """

    layout: ClassVar[VlmLayout]

    @classmethod
    def folder_of(cls, config: Any) -> Path:
        """Where the model of `config` lies; everything that it needs is there.

        Raises:
            BackboneError: see `slime_bench.backbones.weights.find`.
        """
        return find(config.weights, config.revision, cls.layout)

    @classmethod
    def content_hash_of(cls, config: Any) -> str:
        return cls.layout.fingerprint(cls.folder_of(config))


class Blip(_InFolder):
    """BLIP for image-text matching (Li et al., ICML 2022): any `BlipForImageTextRetrieval`, the released ones,
    `mini_blip`, a folder of one's own."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.blip.BlipBackbone"
    layout = VlmLayout()
    kind: ClassVar[str] = "blip"
    """What `config.json` calls such a model."""

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
        """The library's `BlipConfig` of a folder, and the facts of `describe`.

        Raises:
            BackboneError: as `describe`.
        """
        architecture, first = cls.architecture(folder)
        text = architecture.text_config
        limit = int(text.max_position_embeddings)
        path = folder / "tokenizer_config.json"
        stated = read_json(path).get("model_max_length") if path.is_file() else None
        if isinstance(stated, int | float) and 0 < stated < limit:
            limit = int(stated)
        names = tuple(f"layer.{index}" for index in range(first, text.num_hidden_layers))
        facts = VlmFacts(names, patch=int(architecture.vision_config.patch_size), num_tokens=limit)
        patch_grid((image_size, image_size), facts.patch)
        return architecture, facts

    @classmethod
    def architecture(cls, folder: Path) -> tuple[Any, int]:
        """The `BlipConfig`, and the index of the first text layer with cross-attention. Keys that the file leaves out
        have the library's defaults.

        Raises:
            BackboneError: no JSON, a model of another kind, or values that the library refuses.
        """
        from transformers import BlipConfig

        from slime_bench.backbones.load import guarded

        content = read_json(folder / CONFIG)
        if content.get("model_type") != cls.kind:
            raise unusable(folder / CONFIG, f"model_type {content.get('model_type')!r}, not {cls.kind!r}")
        described = {**content, "model_type": "blip"}
        return guarded("configuration", folder / CONFIG, lambda: BlipConfig.from_dict(described)), 0


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

    @dataclass
    class Config(Blip.Config):
        """Settings of an ALBEF: those of a BLIP. `weights` is a folder that `data_prep.convert_albef` has written, or a
        hub id of such a one; its own pixel statistics are CLIP's."""

        name: str = "albef"
        weights: str = field(default="albef", metadata=located("backbone"))
        image_size: Annotated[int, Field(ge=1)] = 384
        statistics: Literal["imagenet", "own"] = "own"

    @classmethod
    def architecture(cls, folder: Path) -> tuple[Any, int]:
        found, _ = super().architecture(folder)
        first = read_json(folder / CONFIG).get("fusion_layer")
        layers = int(found.text_config.num_hidden_layers)
        if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first < layers:
            raise unusable(folder / CONFIG, f"fusion_layer {first!r}, with {layers} text layers")
        return found, first


class Llava(_InFolder):
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
        from slime_bench.backbones.load import load_llava_tokenizer

        geometry = read_geometry(folder)
        conversation = Conversation(load_llava_tokenizer(folder), templates, geometry.image_token)
        left = geometry.positions - geometry.image_tokens - len(conversation)
        if left < 1:
            raise BackboneError(
                "the conversation leaves no room for a prompt", path="backbone.templates.conversation",
                found=f"{len(conversation)} tokens beside {geometry.image_tokens} of the image",
                expected=f"fewer than {geometry.positions} together", remedy="shorten the conversation",
            )  # fmt: skip
        layers = tuple(f"layer.{index}" for index in range(geometry.layers))
        return geometry, conversation, VlmFacts(layers, geometry.patch, left, image_size=geometry.side)
