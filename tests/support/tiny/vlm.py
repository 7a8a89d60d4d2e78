"""A Gemma-3n of the real classes with random weights, small enough to be saved and loaded in a test."""

from __future__ import annotations

from pathlib import Path

import torch

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_soft_token>{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEXT = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>",
        "<start_of_image>", "<start_of_audio>"]  # fmt: skip
IMAGE = ["<end_of_image>", "<image_soft_token>"]
IMAGE_TOKENS = 16
AUDIO = ["<end_of_audio>", "<audio_soft_token>"]


def save_tiny_gemma(folder: Path, seed: int = 1) -> Path:
    """Model, tokenizer (a token a letter), picture and sound processors, in the published folder's form; 30 MB."""
    from transformers import Gemma3nAudioFeatureExtractor, Gemma3nProcessor, SiglipImageProcessor

    tokenizer = letter_tokenizer()
    pictures = SiglipImageProcessor(
        size={"height": 128, "width": 128}, image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0]
    )
    Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(), pictures, tokenizer, TEMPLATE, image_seq_length=16
    ).save_pretrained(folder)
    tiny_gemma(tokenizer, seed).save_pretrained(folder)
    return folder


def letter_tokenizer():
    from transformers import GemmaTokenizer

    letters = ["▁", *(chr(code) for code in range(33, 127)), "\n"]
    words = [*TEXT, *letters, *IMAGE, *AUDIO]
    special = dict(zip(
        ("boi_token", "boa_token", "eoi_token", "image_token", "eoa_token", "audio_token"),
        (*TEXT[-2:], *IMAGE, *AUDIO), strict=True,
    ))  # fmt: skip
    return GemmaTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        extra_special_tokens={**special, "sot_token": "<start_of_turn>", "eot_token": "<end_of_turn>"},
    )


def tiny_gemma(tokenizer, seed: int):
    """The vision tower keeps its depth and is narrowed to a sixteenth (7 M parameters); text and sound are cut down."""
    from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

    number = tokenizer.convert_tokens_to_ids
    words = number("<end_of_image>")
    text = {
        "vocab_size": words + 4, "vocab_size_per_layer_input": words, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 2, "num_kv_shared_layers": 2,
        "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "initializer_range": 0.5,
    }  # fmt: skip
    config = Gemma3nConfig(
        text_config=text,
        vision_config={
            "vocab_size": 2, "vocab_offset": words,
            "model_args": {"channel_multiplier": 0.0625, "msfa_output_resolution": 4},
        },
        audio_config={
            "vocab_size": 2, "vocab_offset": words + 2, "hidden_size": 16, "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 2, "sscp_conv_channel_size": [4, 4],
        },
        boi_token_id=number("<start_of_image>"), eoi_token_id=number("<end_of_image>"),
        image_token_id=number("<image_soft_token>"), boa_token_id=number("<start_of_audio>"),
        eoa_token_id=number("<end_of_audio>"), audio_token_id=number("<audio_soft_token>"),
        vision_soft_tokens_per_image=IMAGE_TOKENS,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Gemma3nForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model.layers" in name and weight.ndim == 2:
                weight.mul_(3)  # or it says one letter whatever it is shown
    model.generation_config.eos_token_id = [number("<eos>"), number("<end_of_turn>")]
    model.generation_config.pad_token_id = number("<pad>")
    return model
