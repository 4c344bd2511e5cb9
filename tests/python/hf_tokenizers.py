#!/usr/bin/env python3
"""elapid and the tokenizers library make the same ids of a text and the same text of ids.

    tests/python/hf_tokenizers.py [--elapid BINARY] DIR...
compares them on odd strings for every tokenizer.json below the directories: ids without and with what stands around a
document, text with and without special tokens, whole and as it is streamed. Where a tokenizer_config.json has
add_bos_token or add_eos_token, what stands around a document is not compared: elapid follows them.

    tests/python/hf_tokenizers.py --record
writes crates/elapid/tests/data/tokenizers/: a small tokenizer for each decoder, with texts of random ids.

Nothing is downloaded. Where the library cannot be imported, nothing is tested: it prints so and exits with 0.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

try:
    from tokenizers import Tokenizer
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDED = ROOT / "crates/elapid/tests/data/tokenizers"

ODD = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n\t a\r\n b\u00a0c\u2003d\u3000e\ufeff",
    "Hello, world! It's 3.14; don't (really) do not.",
    "na\u00efve caf\u00e9, nai\u0308ve cafe\u0301, \u212b \ufb01 \u1e9e \u0130i",
    "日本語のテキスト、中文，한국어",
    "🙂👩\u200d👩\u200d👧\u200d👦 🇩🇪 ❤\ufe0f",
    "שלום עולם مرحبا \u202eabc\u202c",
    "\u0000\u0001\u007f\u0085\u2028\ue000\U0010ffff\ufffd\ufffd",
    "a_b__c \u2581x \u2581\u2581y _ \u0120z \u010a ## ##a </w> | <0x41> <0xE2>",
    "<s> </s> <unk> <pad> <|endoftext|> <bos><eos> [CLS] [SEP] [MASK] <|im_start|>user<|im_end|>",
    "def f(x):\n    return x ** 2  # \u00bd\n\n\n        pass\n",
    "1234567890 1,000,000 0x1F 10^6 \u0661\u0662\u0663",
    "a" * 300 + " " + "\u00e9" * 50 + " " + "🙂" * 20,
    "https://example.org/a?b=c&d=%20#e  user@example.org",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0928\u092e\u0938\u094d\u0924\u0947 \u10d0\u10d1\u10d2",
]


def panics(call):
    """The result of a call, or None where the library panics."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            return None
        raise


# ---- recording


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def strip(start, stop, content=" "):
    return {"type": "Strip", "content": content, "start": start, "stop": stop}


def metaspace(character, scheme):
    return {"type": "Metaspace", "replacement": character, "prepend_scheme": scheme, "split": True}


def sequence(*parts):
    return {"type": "Sequence", "decoders": list(parts)}


FUSE, BYTES = {"type": "Fuse"}, {"type": "ByteFallback"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
BPE = {"type": "BPEDecoder", "suffix": "</w>"}
CTC = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
CLEAN = {"type": "WordPiece", "prefix": "##", "cleanup": True}

DECODERS = {
    "none": None,
    "fuse": FUSE,
    "byte-level": BYTE_LEVEL,
    "byte-fallback": BYTES,
    "wordpiece": {"type": "WordPiece", "prefix": "##", "cleanup": False},
    "wordpiece-cleanup": CLEAN,
    "bpe-suffix": BPE,
    "ctc": CTC,
    "metaspace-always": metaspace("_", "always"),
    "metaspace-first": metaspace("\u2581", "first"),
    "metaspace-never": metaspace("\u2581", "never"),
    "replace": replace({"String": "_"}, " "),
    "replace-regex": replace({"Regex": "[ab]+"}, "x"),
    "strip": strip(1, 0),
    "llama": sequence(replace({"String": "\u2581"}, " "), BYTES, FUSE, strip(1, 0)),
    "gemma": sequence(replace({"String": "\u2581"}, " "), BYTES, FUSE),
    "strip-both": sequence(replace({"String": "_"}, " "), FUSE, strip(2, 2)),
    "ctc-metaspace": sequence(CTC, metaspace("_", "always")),
    "wordpiece-strip": sequence(CLEAN, strip(1, 0, "c")),
    "byte-level-suffix": sequence(BYTE_LEVEL, replace({"String": "</w>"}, " "), strip(0, 1)),
    "fuse-replace": sequence(FUSE, replace({"String": "aba"}, "<>")),
    "fuse-regex": sequence(FUSE, replace({"Regex": "a(b|$)"}, "x")),
    "fuse-metaspace": sequence(FUSE, metaspace("_", "never"), metaspace("\u2581", "always")),
    "fuse-wordpiece": sequence(FUSE, CLEAN),
    "fuse-byte-fallback": sequence(FUSE, BYTES),
    "fuse-bpe": sequence(FUSE, BPE),
    "fuse-byte-level": sequence(FUSE, BYTE_LEVEL),
    "nested": sequence(sequence(replace({"String": "_"}, " ")), sequence(sequence(BYTES), FUSE)),
}

VOCABULARY = (
    "<unk> a b ab ba aba c \u00e9 \u20ac _ __ _a _b \u2581 \u2581a \u2581\u2581b ##c ##ab a</w> c</w> </w> | . , ! ' n't 's do not "
    "<0xE2> <0x82> <0xAC> <0x41> <0xFF> <0x+5> <0xZZ> \u0120 \u0120a \u00e2 \u0124 \u00ac \u00f0 \u0141 <pad>"
).split(" ") + [" ", " .", " n't", "  a", "do not", ""]


def added(content, id, special):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **flags, "special": special}


def definition(decoder):
    vocabulary = {token: id for id, token in enumerate(dict.fromkeys(VOCABULARY))}
    size = len(vocabulary)
    specials = [("<pad>", vocabulary["<pad>"], False), ("<s>", size, True), ("</s>", size + 1, True)]
    specials += [("<x> \u20ac_\u2581", size + 2, False), ("caf\u00e9 \u0120", size + 3, False)]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(*token) for token in sorted(specials, key=lambda token: token[1])],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip


def record():
    RECORDED.mkdir(exist_ok=True)
    for name, decoder in DECODERS.items():
        generator = random.Random(name)
        tokenizer_json = definition(decoder)
        tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json))
        ids = sorted(tokenizer.get_vocab(True).values())
        texts = []
        for length in [0, 1, 1, 1, 2, 2, 3, 4, 5, 6] + [8] * 10 + [16] * 6:
            # A few tokens often, so that they meet.
            few = generator.sample(ids, 5)
            case = [generator.choice(few if generator.random() < 0.7 else ids) for _ in range(length)]
            if generator.random() < 0.3:
                case.append(ids[-1] + 1 + generator.randrange(9))
            both = [panics(lambda: tokenizer.decode(case, skip_special_tokens=skip)) for skip in (True, False)]
            if None not in both:
                texts.append([case, *both])
        assert len(texts) >= 20, name
        lines = ",\n".join(json.dumps(text, ensure_ascii=False) for text in texts)
        text = f'{{"tokenizer": {json.dumps(tokenizer_json, ensure_ascii=False)},\n"texts": [\n{lines}\n]}}\n'
        (RECORDED / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{len(DECODERS)} tokenizers in {RECORDED}")


# ---- comparing


def tokenize(elapid, model, lines, *options):
    """What `elapid tokenize --lines` makes of some texts and lists of ids."""
    command = [elapid, "tokenize", "--model", str(model), "--lines", *options]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        raise RuntimeError(f"{model}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def compare(elapid, path):
    """Differences for one tokenizer.json, as text."""
    tokenizer = Tokenizer.from_file(str(path))
    definition = json.loads(path.read_text(encoding="utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if definition["model"].get("dropout"):
        tokenizer.model.dropout = None
    wrong = []

    def check(what, case, got, wanted):
        if got != wanted:
            wrong.append(f"{what} of {case!r:.80}: wanted {wanted!r:.120}, got {got!r:.120}")

    config = path.with_name("tokenizer_config.json")
    config = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    flags = any(isinstance(config.get(key), bool) for key in ("add_bos_token", "add_eos_token"))
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in ODD]
    for text, got, ids in zip(ODD, tokenize(elapid, path, ODD, "--no-bos"), encoded):
        check("ids", text, got["tokens"], ids)
    if not flags:
        for text, got in zip(ODD, tokenize(elapid, path, ODD, "--document")):
            check("ids of the document", text, got["tokens"], tokenizer.encode(text).ids)

    generator = random.Random(0)
    ids = sorted(tokenizer.get_vocab(True).values())
    special = [id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    cases = [case for case in encoded]
    cases += [generator.choices(ids, k=generator.randrange(1, 40)) for _ in range(60)]
    for _ in range(40):
        case = generator.choice(encoded)
        at = generator.randrange(len(case) + 1)
        cases.append(case[at:] + generator.choices(special or ids, k=1) + case[:at])
    for show, options in ((False, ()), (True, ("--special",))):
        for case, got in zip(cases, tokenize(elapid, path, cases, *options)):
            wanted = panics(lambda: tokenizer.decode(case, skip_special_tokens=not show))
            if wanted is not None:
                check("text", case, got["text"], wanted)
                check("streamed text", case, "".join(got["pieces"]), wanted)
    return wrong, len(ODD) * (1 if flags else 2) + len(cases) * 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--elapid", default=str(ROOT / "target/release/elapid"))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.record:
        return record()
    paths = sorted(path for directory in arguments.directories for path in directory.rglob("tokenizer.json"))
    if not paths:
        sys.exit("no tokenizer.json there: give directories that have some")
    failed = 0
    for path in paths:
        wrong, checks = compare(arguments.elapid, path)
        failed += bool(wrong)
        print(f"{'FAIL' if wrong else 'ok'} {path}: {checks} comparisons, {len(wrong)} differences", flush=True)
        for line in wrong[:5]:
            print(f"    {line}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
