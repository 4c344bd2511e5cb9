#!/usr/bin/env python3
"""elapid and transformers agree on checkpoints, each reading what the other wrote.

Without --model: random models saved by transformers (tied, untied with biases, sharded, bfloat16, and one rewritten in
the layout of the original code) are evaluated by elapid, and compared with what transformers computes.
With --model DIR: a directory that elapid saved is loaded by transformers, and compared with what elapid computes, by
running it or from a file of its results (--tokens IDS.json --nll NLL.json).

Nothing is downloaded. Where torch or transformers cannot be imported, nothing is tested: it prints so and exits with 0.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

try:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import MambaConfig, MambaForCausalLM
except Exception as error:  # a broken installation raises more than ImportError
    print(f"skipped: {type(error).__name__}: {error}")
    sys.exit(0)

RELATIVE, ABSOLUTE = 1e-4, 1e-5
ROOT = pathlib.Path(__file__).resolve().parents[2]


def reference_nll(model_dir, tokens):
    """Negative log-likelihood of every token but the first, in f32 whatever the weights are. [b l] -> [b l-1]"""
    model, info = MambaForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"transformers: {kind} {info[kind]}"
    ids = torch.tensor(tokens)
    with torch.no_grad():
        logits = model.eval()(ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def elapid_nll(binary, model_dir, tokens_file):
    command = [binary, "eval", "--model", model_dir, "--tokens", tokens_file, "--per-token", "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)["nll"]


def compare(name, want, got):
    got = torch.tensor(got, dtype=torch.float32)
    assert got.shape == want.shape, f"{name}: wanted nll of shape {list(want.shape)}, got {list(got.shape)}"
    assert torch.isfinite(got).all(), f"{name}: elapid's nll is not finite"
    error = (got - want).abs()
    worst = (error / want.abs().clamp(min=ABSOLUTE / RELATIVE)).max().item()
    assert (error <= RELATIVE * want.abs() + ABSOLUTE).all(), f"{name}: largest relative error {worst:.2e}"
    print(f"ok: {name}: {want.numel()} tokens, nll {want.mean():.4f}, largest relative error {worst:.1e}")


def random_tokens(vocab_size, b=3, l=101):
    return torch.randint(vocab_size, (b, l)).tolist()


def random_model(**fields):
    sizes = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, initializer_range=0.1)
    model = MambaForCausalLM(MambaConfig(**(sizes | fields)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that a bias or a norm left out is seen
            if name.endswith(("bias", "norm.weight", "norm_f.weight", ".D", "A_log")) and "dt_proj" not in name:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def rewrite_as_original(source, target):
    """The same model in the layout of the original code: its config, its embedding's name, the tied head stored."""
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    original = {
        "d_model": config["hidden_size"], "n_layer": config["num_hidden_layers"], "vocab_size": config["vocab_size"] - 3,
        "ssm_cfg": {"d_state": config["state_size"]}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 8, "tie_embeddings": config["tie_word_embeddings"],
    }
    (target / "config.json").write_text(json.dumps(original))


def transformers_to_elapid(binary):
    torch.manual_seed(0)
    cases = {
        "tied": ({}, {}),
        "untied, biases, other sizes": (
            dict(tie_word_embeddings=False, use_bias=True, state_size=8, conv_kernel=3, expand=3, time_step_rank=5), {}
        ),
        "no convolution bias, state of 1": (dict(use_conv_bias=False, state_size=1), {}),
        "sharded": (dict(tie_word_embeddings=False), dict(max_shard_size="60KB")),
        "bfloat16": ({}, {}),
        "original layout": (dict(vocab_size=64, state_size=16), {}),
    }
    for name, (fields, options) in cases.items():
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            saved, tokens_file = scratch / "model", scratch / "tokens.json"
            model = random_model(**fields)
            if name == "bfloat16":
                model = model.to(torch.bfloat16)
            model.save_pretrained(saved, **options)
            if name == "sharded":
                assert len(list(saved.glob("*.safetensors"))) > 2, "transformers did not shard"
            tokens = random_tokens(model.config.vocab_size - 3)
            tokens_file.write_text(json.dumps(tokens))
            want = reference_nll(saved, tokens)
            if name == "original layout":
                rewrite_as_original(saved, scratch / "original")
                saved = scratch / "original"
            compare(f"saved by transformers, {name}", want, elapid_nll(binary, saved, tokens_file))


def elapid_to_transformers(arguments):
    with tempfile.TemporaryDirectory() as scratch:
        tokens_file = arguments.tokens
        if tokens_file is None:
            vocab_size = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
            torch.manual_seed(0)
            tokens_file = pathlib.Path(scratch) / "tokens.json"
            tokens_file.write_text(json.dumps(random_tokens(vocab_size)))
        tokens = json.loads(tokens_file.read_text())
        if arguments.nll:
            got = json.loads(arguments.nll.read_text())
            got = got["nll"] if isinstance(got, dict) else got
        else:
            got = elapid_nll(arguments.elapid, arguments.model, tokens_file)
        compare(f"saved by elapid, {arguments.model}", reference_nll(arguments.model, tokens), got)


def main():
    built = [path for path in (ROOT / "target/release/elapid", ROOT / "target/debug/elapid") if path.exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elapid", default=built[0] if built else shutil.which("elapid"), help="the binary")
    parser.add_argument("--model", type=pathlib.Path, help="a directory that elapid saved")
    parser.add_argument("--tokens", type=pathlib.Path, help="JSON: rows of token ids, all of one length")
    parser.add_argument("--nll", type=pathlib.Path, help="JSON: elapid's nll for them, or its output that has it")
    arguments = parser.parse_args()
    if arguments.nll and not (arguments.model and arguments.tokens):
        parser.error("--nll needs --model and --tokens")
    if not arguments.nll and not arguments.elapid:
        parser.error("no elapid found: build it, or name it with --elapid")
    try:
        if arguments.model:
            elapid_to_transformers(arguments)
        else:
            transformers_to_elapid(arguments.elapid)
    except AssertionError as error:
        print(f"failed: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
