#!/usr/bin/env python3
"""Writes docs/results/state_size.md and families.md from the results of runs/experiments.py.

experiments_page.py [--results DIR]. ELAPID is the binary: `elapid compare` computes the sizes and draws the pictures.
The text below the marker `<!-- remarks -->` of a page is kept.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from experiments import MQAR_RATES, RATES, ROOT, SLOWER, families, slower

MARKER = "<!-- remarks -->"


def result(folder):
    file = folder / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def metrics(folder):
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def best_of_sweep(results):
    done = [(found["bits_per_byte"], f"{rate:g}") for rate in RATES if (found := result(results / "sweep" / f"{rate:g}"))]
    return min(done)[1] if done else None


def compare(folders, title, page):
    """Sizes and best figures of runs by name, and the picture of them beside `page`. `folders` are by name."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name, folder in folders.items():
            shutil.copytree(folder, scratch / name)
        command = [os.environ.get("ELAPID", "elapid"), "compare", *[str(scratch / name) for name in folders]]
        command += ["--against", "state", "--title", title, "--report", str(scratch / page.name), "--json"]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        picture = f"{page.stem}-sizes.svg"
        shutil.copy(scratch / picture, page.parent / picture)
    return {run["name"]: run for run in found["runs"]}


def write(page, title, text):
    """The page, with the remarks that it has."""
    old = page.read_text() if page.exists() else ""
    remarks = old.split(MARKER, 1)[1] if MARKER in old else "\n"
    page.write_text(f"# {title}\n\n{text}\n{MARKER}{remarks}")


def table(heading, rows):
    align = "|".join("---" if column == 0 else "---:" for column in range(len(heading)))
    return "\n".join(["| " + " | ".join(heading) + " |", f"|{align}|", *["| " + " | ".join(row) + " |" for row in rows]]) + "\n"


def bytes_of(count):
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1000


def rate_of(tokens):
    return "-" if tokens is None else (f"{tokens / 1e6:.2f} M" if tokens >= 1e6 else f"{tokens / 1e3:.3g} k")


def complete(folder):
    """Whether the run of a language model reached its end."""
    found = result(folder)
    return found is not None and found.get("stopped") == "finished"


def state_size(results, docs):
    best = best_of_sweep(results)
    folders = {f"mamba1-{n}": results / "state_size" / f"mamba1-{n}" for n in (1, 2, 4, 8)}
    folders["mamba1-16"] = results / "sweep" / str(best)
    folders |= {f"mamba2-{n}": results / "state_size" / f"mamba2-{n}" for n in (16, 32, 64)}
    folders["mamba2-128"] = results / "lm/mamba2"
    done = {name: folder for name, folder in folders.items() if complete(folder)}
    title, page = "Loss by state size", docs / "state_size.md"
    found = compare(done, "Loss by state size, 10 M parameters on the books as bytes", page)
    rows = []
    for name in folders:
        run = found.get(name)
        kind, n = name.rsplit("-", 1)
        cells = [f"{run['parameters']:,}", bytes_of(run["state_bytes"]), f"{run['best']:.4f}"] if run else ["-"] * 3
        rows.append([kind.replace("mamba", "Mamba-"), n, *cells])
    text = "![bits per byte by size of the state](state_size-sizes.svg)\n\n"
    write(page, title, text + table(["", "N", "parameters", "state of a sequence, f32", "bits per byte, held out"], rows))


def accuracy(folder):
    """The best accuracy, and whether the run reached its end."""
    values = [record["accuracy"] for record in metrics(folder) if "accuracy" in record]
    found = result(folder)
    return (max(values) if values else None, found is not None and found.get("stopped") != "interrupted")


def percent(value, whole):
    return "-" if value is None else f"{100 * value:.1f}" + ("" if whole else "*")


def speed(results, name, kind):
    found = result(results / "bench" / f"{name}-{kind}")
    return rate_of(found and found.get("tokens_per_second"))


def mqar(results, name):
    """The best of three rates; in brackets how many of them ran."""
    runs = [(accuracy(results / "mqar" / f"{name}-{rate:g}"), rate) for rate in MQAR_RATES]
    runs = [(value, whole, rate) for (value, whole), rate in runs if value is not None]
    if not runs:
        return ["-", "-"]
    value, whole, rate = max(runs)
    return [percent(value, whole), f"{rate:g} of {len(runs)}"]


def families_page(results, docs):
    best = best_of_sweep(results)
    names = [name for name, *_ in families()]
    folders = {name: results / ("sweep" if name == "mamba1" else "lm") / (str(best) if name == "mamba1" else name) for name in names}
    folders |= {f"{name} at {SLOWER[name]:g}": results / slower(name) for name in SLOWER}
    names = list(folders)
    done = {name: folder for name, folder in folders.items() if complete(folder)}
    page = docs / "families.md"
    found = compare(done, "Families at 10 M parameters on the books as bytes", page)
    # The picture has the better rate of each family.
    pairs = [(name, f"{name} at {rate:g}") for name, rate in SLOWER.items()]
    worse = {max(pair, key=lambda name: found[name]["best"]) for pair in pairs if all(name in found for name in pair)}
    compare({name: folder for name, folder in done.items() if name not in worse}, "Families at 10 M parameters on the books as bytes", page)
    rows = []
    for name in sorted(names, key=lambda name: found[name]["best"] if name in found else 9):
        run = found.get(name)
        if run is None and " at " in name:
            continue
        parity, whole = accuracy(results / "parity" / name)
        sizes = [f"{run['parameters'] / 1e6:.2f} M", f"{run['best']:.4f}", bytes_of(run["state_bytes"])] if run else ["-"] * 3
        speeds = [speed(results, name, kind) for kind in ("train", "decode-1", "decode-64")]
        rows.append([name, *sizes, *speeds, *mqar(results, name), percent(parity, whole)])
    heading = ["", "parameters", "bits per byte, held out", "state at 8,192, f32", "training, tokens/s", "decoding 1, tokens/s"]
    heading += ["decoding 64, tokens/s", "MQAR, %", "its rate, of how many", "parity at 256, %"]
    text = "![bits per byte by size of the state](families-sizes.svg)\n\n" + table(heading, rows)
    sweep = [(rate, result(results / "sweep" / f"{rate:g}")) for rate in sorted(RATES)]
    swept = ", ".join(f"{found['bits_per_byte']:.4f} at {rate:g}" for rate, found in sweep if found)
    write(page, "The field at a glance", text + f"\nThe learning rate of all language models is {best}, the best for Mamba: {swept}.\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="runs/families")
    parser.add_argument("--docs", default="docs/results")
    options = parser.parse_args()
    os.chdir(ROOT)
    results, docs = pathlib.Path(options.results), pathlib.Path(options.docs)
    state_size(results, docs)
    families_page(results, docs)


if __name__ == "__main__":
    main()
