#!/usr/bin/env python3
"""Positions and the z loss as transformers computes them: reference_positions.py FILE.json. Needs torch and transformers.

golden/positions.json was written by it with the versions that are named in it.
"""
import json
import sys

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func


def scaled(kind, base, dim, length=None, **parameters):
    config = LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        max_position_embeddings=parameters.get("original_max_position_embeddings", 4096),
        rope_parameters={"rope_type": kind, "rope_theta": base, **parameters},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    return {
        "kind": kind,
        "base": base,
        "dim": dim,
        "length": length,
        **parameters,
        "frequencies": frequencies.double().tolist(),
        "attention_factor": float(factor),
    }


scalings = [
    scaled("linear", 1e4, 64, factor=4.0),
    scaled("linear", 5e5, 24, factor=2.5),
    # Of a text twice as long as in training: NTK by factor + 1.
    scaled("dynamic", 1e4, 64, length=8192, factor=3.0),
    scaled("dynamic", 1e4, 24, length=8192, factor=7.0),
    scaled("llama3", 5e5, 128, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    scaled("llama3", 5e5, 64, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    scaled("yarn", 1e4, 128, factor=16.0, original_max_position_embeddings=4096),
    scaled("yarn", 1e6, 64, factor=4.0, beta_fast=24.0, beta_slow=2.0, original_max_position_embeddings=32768),
    scaled("yarn", 1.5e5, 64, factor=32.0, truncate=False, original_max_position_embeddings=4096),
]
waves = []
for dim in (8, 30):
    table = MarianSinusoidalPositionalEmbedding(512, dim)
    for name in ("create_weight", "_init_weight"):
        if hasattr(table, name):
            made = getattr(table, name)()
            weight = made if made is not None else table.weight
            break
    positions = [0, 1, 2, 63, 300, 511]
    # All sines, then all cosines.
    waves.append({"dim": dim, "positions": positions, "values": weight.detach()[positions].double().tolist()})
torch.manual_seed(0)
logits = 3 * torch.randn(1, 40, 8, requires_grad=True)
logits.retain_grad()
loss = router_z_loss_func(logits)
loss.backward()
z = {"experts": 8, "logits": logits.detach().flatten().tolist(), "loss": loss.item(), "gradient": logits.grad.flatten().tolist()}
versions = {"torch": torch.__version__, "transformers": transformers.__version__}
with open(sys.argv[1], "w") as out:
    json.dump({"versions": versions, "scalings": scalings, "sinusoids": waves, "z_loss": z}, out)
print(versions)
