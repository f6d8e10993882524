"""The mini BLIP and its losses as one module, and a stage of its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipForImageTextRetrieval

from data_prep.pretrain.blip_captions import draw_example
from data_prep.pretrain.blip_losses import (
    Packed,
    attention_losses,
    contrast,
    fine_contrast,
    normalised,
    pack,
    pack_texts,
    read_texts,
    recorded,
    told_apart,
)
from data_prep.pretrain.stream import stream_rng
from data_prep.pretrain.trainloop import Stage, adamw, train

WEIGHTS = {"contrast": 0.1, "fine": 0.5, "evidence": 1.0, "level": 0.02}  # beside the matching loss's 1


class Matcher(nn.Module):
    """The model and the scales of its contrastive losses as one trainable module."""

    def __init__(self, model: BlipForImageTextRetrieval) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.gain = nn.Parameter(torch.tensor([2.5, -3.0]))
        self.evidence = nn.Parameter(torch.tensor([0.0, 1.0]))

    @property
    def grounded(self) -> tuple[int, int]:
        """The two middle layers. They alone learn where a word is; the layers after them are left to the decision
        whether a caption matches, as in released models, whose layers differ in what their attention shows."""
        middle = len(self.model.text_encoder.encoder.layer) // 2
        return middle - 1, middle

    def forward(
        self,
        pixels: torch.Tensor,
        packed: Packed,
        alone: Packed,
        of: torch.Tensor,
        described: torch.Tensor,
        levelled: int,
    ) -> dict[str, torch.Tensor]:
        """The losses of B images and their captions.

        Args:
            pixels: float32 [B,3,side,side], normalised. packed: their captions. alone, of: see `pack_texts`.
            described: bool [B], whether the first caption describes the image.
            levelled: the layer whose scores are levelled beside the grounded ones'.

        Returns:
            `loss`, its terms `match`, `contrast`, `fine`, `level`, `evidence`, and `accuracy`: the share of captions
            judged right.
        """
        model, device = self.model, self.scale.device
        states = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        with recorded(model, dict.fromkeys((*self.grounded, levelled))) as scores:
            hidden = packed.read(model, states)
        logits = model.itm_head(hidden[packed.image, packed.start]).float()
        texts = read_texts(model, alone, of)
        first = texts.first[of[packed.start == 0]]  # of every image
        contrastive = contrast(model, states[described, 0], first[described], self.scale)
        fine = fine_contrast(model, states, texts, packed, self.gain)
        with torch.autocast(device.type, enabled=False):
            terms = {
                "match": told_apart(logits[:, 1] - logits[:, 0], packed.match, packed.weight),
                "contrast": contrastive.float(),
                "fine": fine.float(),
                **attention_losses(
                    scores, model.text_encoder.config.num_attention_heads, packed, self.evidence, len(self.grounded)
                ),
            }
        loss = terms["match"] + sum(weight * terms[name] for name, weight in WEIGHTS.items())
        accuracy = (logits.argmax(1) == packed.match).float().mean()
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}, "accuracy": accuracy}


def train_blip(
    matcher: Matcher, tokenizer: BertTokenizer, fabric: Fabric, work: Path, stage: Stage, number: int
) -> None:
    """Train one stage, or load what was trained of it.

    Args:
        number: of the stage; each reads its own stretch of the stream.
    """
    batch = stage.batch // fabric.world_size
    optimiser = adamw(matcher, stage.rate)
    layers = len(matcher.model.text_encoder.encoder.layer)

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        rng, _ = stream_rng(f"{stage.name}.{fabric.global_rank}", step)
        # A resumed run goes on behind what it has already seen.
        first = number * 10_000_000 + step * stage.batch + fabric.global_rank * batch
        examples = [draw_example(first + place, rng) for place in range(batch)]
        pixels = normalised(torch.from_numpy(np.stack([each.image for each in examples])).to(fabric.device))
        captions = [each.captions for each in examples]
        packed, (alone, of) = pack(tokenizer, captions).to(fabric.device), pack_texts(tokenizer, captions)
        described = torch.tensor([each.described for each in examples], device=fabric.device)
        pixels = F.avg_pool2d(pixels, pixels.shape[-1] // stage.side)
        words = (packed, alone.to(fabric.device), of.to(fabric.device))
        return dict(module(pixels, *words, described, int(rng.integers(layers))))

    train(fabric, stage, work, matcher.train(), optimiser, losses)
