"""The architecture of the mini BLIP, in the library's own classes: an image-text matcher with 8-pixel patches."""

from __future__ import annotations

import string

from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

from data_prep.pretrain.models import HEAD_WIDTH

SIDE, PATCH = 128, 8
MAX_TOKENS = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_tokenizer(words: list[str]) -> BertTokenizer:
    """BERT's WordPiece tokenizer in which each of `words` is one token; any other word has its letters' tokens."""
    letters = [*string.ascii_lowercase, *string.digits]
    names = [*SPECIAL, *string.punctuation, *letters, *(f"##{each}" for each in letters), *sorted(words)]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return BertTokenizer(vocab=vocab, model_max_length=MAX_TOKENS)


def build_blip(tokenizer: BertTokenizer, width: int = 192, layers: int = 6) -> BlipForImageTextRetrieval:
    """`layers` vision layers and as many text layers, each with cross-attention to the image."""
    heads = width // HEAD_WIDTH
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        encoder_hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_range=0.02,
    )
    return BlipForImageTextRetrieval(
        BlipConfig(
            text_config=text.to_dict(),
            vision_config=vision.to_dict(),
            projection_dim=width // 2,
            image_text_hidden_size=width // 2,
        )
    )
