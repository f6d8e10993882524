"""One stage of the mini BLIP's training: views of one picture side, until the clock's budget is used up."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipForImageTextRetrieval

from data_prep.pretrain.blip_captions import Example, draw_example
from data_prep.pretrain.blip_losses import (
    attention_losses,
    contrast,
    fine_contrast,
    normalised,
    pack,
    recorded,
    told_apart,
)
from data_prep.pretrain.stream import stream_rng
from data_prep.pretrain.trainloop import Clock, Ema, Ranks, autocast

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

    def losses(
        self,
        tokenizer: BertTokenizer,
        examples: list[Example],
        rng: np.random.Generator,
        side: int,
        device: torch.device,
    ) -> dict[str, torch.Tensor]:
        """`match`, `contrast`, `fine`, `level`, `evidence` and the share of captions judged right, `accuracy`."""
        model, text_model = self.model, self.model.text_encoder
        pixels = normalised(torch.from_numpy(np.stack([each.image for each in examples])).to(device))
        if pixels.shape[-1] != side:
            pixels = F.avg_pool2d(pixels, pixels.shape[-1] // side)
        packed = pack(tokenizer, [each.captions for each in examples]).to(device)
        described = torch.tensor([each.described for each in examples], device=device)
        layers = rng.choice(len(text_model.encoder.layer), WATCHED, replace=False).tolist()
        with autocast(device):
            states = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
            with recorded(model, layers) as scores:
                hidden = text_model(
                    input_ids=packed.ids,
                    position_ids=packed.positions,
                    attention_mask=packed.mask,
                    encoder_hidden_states=states,
                ).last_hidden_state
            logits = model.itm_head(hidden[packed.image, packed.start]).float()
            text = text_model(
                input_ids=packed.ids, position_ids=packed.positions, attention_mask=packed.mask
            ).last_hidden_state
            contrastive = contrast(model, states[described, 0], text[described, 0], self.scale)
            fine = fine_contrast(model, states, text, packed, self.gain)
        return {
            "match": told_apart(logits[:, 1] - logits[:, 0], packed.match, packed.weight),
            "contrast": contrastive.float(),
            "fine": fine.float(),
            **attention_losses(scores, text_model.config.num_attention_heads, packed, self.evidence),
            "accuracy": (logits.argmax(1) == packed.match).float().mean(),
        }


def train_blip(
    matcher: Matcher, ema: Matcher, tokenizer: BertTokenizer, clock: Clock, device: torch.device, ranks: Ranks,
    side: int, batch: int, decay_from: float,
) -> None:  # fmt: skip
    """Train at one picture side (64 or 128); `ema` gets the averaged weights."""
    matcher.to(device).train()
    ema.to(device).eval()
    average = Ema(matcher, ema, EMA_DECAY)
    gains = [p for p in matcher.parameters() if p.ndim < 2]
    matrices = [p for p in matcher.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE[side], betas=(0.9, 0.98))
    models = {"matcher": matcher, "ema": ema}
    clock.restore(models, optimiser)
    # Each rank reads its own stretch of the stream; a resumed run goes on behind what it has already seen.
    start = side * 1_000_000 + ranks.rank * 20_000_000
    while ranks.agree(clock.running()):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE[side] * clock.learning_rate_factor(200, decay_from)
        rng, _ = stream_rng(f"blip{side}-{ranks.rank}", clock.step)
        examples = [draw_example(start + clock.step * batch + i, rng) for i in range(batch)]
        terms = matcher.losses(tokenizer, examples, rng, side, device)
        loss = terms["match"] + sum(weight * terms[name] for name, weight in WEIGHTS.items())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        ranks.average_gradients(matcher)
        torch.nn.utils.clip_grad_norm_(matcher.parameters(), 1.0)
        optimiser.step()
        average.update(clock.step)
        clock.tick(
            {name: float(value.detach()) for name, value in terms.items()}, models, optimiser, images=batch * ranks.size
        )
    clock.save(models, optimiser)
