#!/usr/bin/env python3
"""Golden folder of a hybrid of mamba_ssm: reference_mamba_ssm.py SOURCE OUT. Needs torch, triton, einops, transformers.

SOURCE holds the package `mamba_ssm`. Its classes are used as they are, from configuration to head; its Triton kernels, which need
a GPU, and flash-attn's rotary positions are replaced by what they compute, in plain PyTorch and float64.
"""
import dataclasses
import importlib
import json
import pathlib
import sys
import types

import torch
from golden_folder import record, rms

source, out = map(pathlib.Path, sys.argv[1:])
# The package itself loads CUDA extensions.
for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.modules", "mamba_ssm.models", "mamba_ssm.utils"):
    package = types.ModuleType(name)
    package.__path__ = [str(source.joinpath(*name.split(".")))]
    sys.modules[name] = package
scan = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
scan.selective_scan_fn = scan.mamba_inner_fn = scan.rms_norm_fn = scan.SelectiveScanFn = None
sys.modules[scan.__name__] = scan
mamba2 = importlib.import_module("mamba_ssm.modules.mamba2")
mha = importlib.import_module("mamba_ssm.modules.mha")
mixer = importlib.import_module("mamba_ssm.models.mixer_seq_simple")
norms = importlib.import_module("mamba_ssm.ops.triton.layer_norm")
gated = importlib.import_module("mamba_ssm.ops.triton.layernorm_gated")
config = importlib.import_module("mamba_ssm.models.config_mamba")


class Rotary:
    """Column i with column i + dim / 2 of the first dim columns of q [b l h c] and of the keys in kv [b l 2 h c]."""

    def __init__(self, dim, base=10000.0, interleaved=False, device=None):
        assert not interleaved
        self.frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def turned(self, x):
        half = len(self.frequencies)
        angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float64), self.frequencies)[None, :, None]
        a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos(), rest], -1)

    def __call__(self, q, kv, seqlen_offset=0, max_seqlen=None):
        assert seqlen_offset == 0
        return self.turned(q), torch.stack([self.turned(kv[:, :, 0]), kv[:, :, 1]], 2)


def main():
    torch.Tensor.float = torch.Tensor.double  # The reference of the block has casts.
    norms.RMSNorm.forward = lambda self, x, **_: rms(x, self.weight, self.eps)
    mha.RotaryEmbedding, mha.causal_conv1d_fn = Rotary, None
    mamba2.mamba_split_conv1d_scan_combined = block
    torch.manual_seed(33)
    cfg = config.MambaConfig(
        d_model=32, d_intermediate=100, n_layer=4, vocab_size=80, ssm_cfg=dict(layer="Mamba2", d_state=16, headdim=16, ngroups=2),
        attn_layer_idx=[1, 3],
        attn_cfg=dict(causal=True, d_conv=4, head_dim=12, num_heads=4, num_heads_kv=2, out_proj_bias=False, rotary_emb_dim=8),
        fused_add_norm=False, pad_vocab_size_multiple=16, tie_embeddings=False,
    )
    model = mixer.MambaLMHeadModel(cfg).double()
    made_by = f"mamba_ssm 2.3.2.post1, torch {torch.__version__}"
    metadata = {"class": "MambaLMHeadModel", "made_by": made_by, "seed": "33"}
    record(out / "mamba2-hybrid", model, lambda tokens: model(tokens).logits, 80, metadata)
    (out / "mamba2-hybrid" / "config.json").write_text(json.dumps(dataclasses.asdict(cfg), indent=2) + "\n")


def block(zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, headdim=None, ngroups=1, rmsnorm_weight=None,
          rmsnorm_eps=1e-6, outproj_weight=None, outproj_bias=None, norm_before_gate=True, **rest):
    """The block by its recurrence, and the package's reference of the norm."""
    inner = outproj_weight.shape[1]
    heads, state = inner // headdim, (zxbcdt.shape[-1] - 2 * inner - inner // headdim) // 2 // ngroups
    z, xbc, dt = zxbcdt.split([inner, inner + 2 * ngroups * state, heads], -1)
    xbc = torch.nn.functional.conv1d(
        xbc.transpose(1, 2), conv1d_weight[:, None], conv1d_bias, padding=conv1d_weight.shape[1] - 1, groups=xbc.shape[-1]
    )[..., : xbc.shape[1]]
    x, b, c = torch.nn.functional.silu(xbc).transpose(1, 2).split([inner, ngroups * state, ngroups * state], -1)
    x = x.unflatten(-1, (heads, headdim))
    b, c = (part.unflatten(-1, (ngroups, state)) for part in (b, c))
    b, c = (part.repeat_interleave(heads // ngroups, 2) for part in (b, c))
    delta = torch.nn.functional.softplus(dt + dt_bias)
    now, outputs = torch.zeros(x.shape[0], heads, headdim, state, dtype=x.dtype), []
    for t in range(x.shape[1]):
        now = now * (delta[:, t] * A).exp()[..., None, None] + (delta[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        outputs.append((now * c[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    y = torch.stack(outputs, 1)
    norm = dict(eps=rmsnorm_eps, group_size=inner // ngroups, norm_before_gate=norm_before_gate)
    y = gated.rms_norm_ref(y.flatten(-2), rmsnorm_weight, None, z=z, **norm)
    return torch.nn.functional.linear(y, outproj_weight, outproj_bias)


main()
