"""One stage of the mini BLIP's training: views of one picture side."""

from __future__ import annotations

from collections.abc import Sequence
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
    recorded,
    told_apart,
)
from data_prep.pretrain.stream import stream_rng
from data_prep.pretrain.trainloop import Stage, train

LEARNING_RATE = {64: 7e-4, 128: 4e-4}  # per picture side
WEIGHTS = {"contrast": 0.1, "fine": 0.5, "evidence": 1.0, "level": 0.02}  # beside the matching loss's 1
WATCHED = 2  # layers whose attention scores have losses in a step, drawn anew each time
EMA_DECAY = 0.998


class Matcher(nn.Module):
    """The model and the scales of its contrastive losses as one trainable module."""

    def __init__(self, model: BlipForImageTextRetrieval) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.gain = nn.Parameter(torch.tensor([2.5, -3.0]))
        self.evidence = nn.Parameter(torch.tensor([0.0, 1.0]))

    def forward(
        self, pixels: torch.Tensor, packed: Packed, described: torch.Tensor, layers: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """The losses of B images and their captions.

        Args:
            pixels: float32 [B,3,side,side], normalised. packed: their captions. described: bool [B], whether the first
                caption describes the image. layers: those whose attention scores have losses.

        Returns:
            `loss`, its terms `match`, `contrast`, `fine`, `level`, `evidence`, and `accuracy`: the share of captions
            judged right.
        """
        model, device = self.model, self.scale.device
        states = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        with recorded(model, layers) as scores:
            hidden = packed.read(model, states)
        logits = model.itm_head(hidden[packed.image, packed.start]).float()
        text = packed.read(model)
        contrastive = contrast(model, states[described, 0], text[described, 0], self.scale)
        fine = fine_contrast(model, states, text, packed, self.gain)
        with torch.autocast(device.type, enabled=False):
            terms = {
                "match": told_apart(logits[:, 1] - logits[:, 0], packed.match, packed.weight),
                "contrast": contrastive.float(),
                "fine": fine.float(),
                **attention_losses(scores, model.text_encoder.config.num_attention_heads, packed, self.evidence),
            }
        loss = terms["match"] + sum(weight * terms[name] for name, weight in WEIGHTS.items())
        accuracy = (logits.argmax(1) == packed.match).float().mean()
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}, "accuracy": accuracy}


def train_blip(
    matcher: Matcher, tokenizer: BertTokenizer, fabric: Fabric, work: Path, seconds: float, side: int, batch: int
) -> None:
    """Train at one picture side (64 or 128) for so many seconds, or load what was trained."""
    stage = Stage(
        f"blip{side}", seconds, LEARNING_RATE[side], batch, decay_from=0.99 if side == 64 else 0.6,
        averaging=EMA_DECAY,
    )  # fmt: skip
    gains = [p for p in matcher.parameters() if p.ndim < 2]
    matrices = [p for p in matcher.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))
    # Each rank reads its own stretch of the stream; a resumed run goes on behind what it has already seen.
    start = side * 1_000_000 + fabric.global_rank * 20_000_000

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        rng, _ = stream_rng(f"blip{side}-{fabric.global_rank}", step)
        examples = [draw_example(start + step * batch + i, rng) for i in range(batch)]
        pixels = normalised(torch.from_numpy(np.stack([each.image for each in examples])).to(fabric.device))
        packed = pack(tokenizer, [each.captions for each in examples]).to(fabric.device)
        described = torch.tensor([each.described for each in examples], device=fabric.device)
        layers = rng.choice(len(matcher.model.text_encoder.encoder.layer), WATCHED, replace=False).tolist()
        return dict(module(F.avg_pool2d(pixels, pixels.shape[-1] // side), packed, described, layers))

    train(fabric, stage, work, matcher.train(), optimiser, losses)
