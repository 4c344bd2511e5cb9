#!/usr/bin/env python3
"""Runs the jobs of runs/state_size.sh and runs/families.sh over several GPUs, several at once on each, resumably.

experiments.py run WHAT ... [--train FILE --val FILE] [--gpus 0,1] [--crowd X] [--seconds N] [--out DIR]
        [--results DIR] [--only JOBS] [--dry-run] [--tiny]
    WHAT: state_size, families, or both. Paths are relative to the repository. Jobs that are finished are skipped, those that were stopped are resumed. After N seconds
    it stops all jobs, which leave checkpoints. --crowd 2 runs twice as many jobs at once on a GPU: good for small ones that
    wait for the CPU, not for language models, and worst for an LSTM, which wants all of a GPU. Results are a few small files a run: config.toml, metrics.jsonl, result.json.
experiments.py status [--results DIR]
    What is finished, by job.

ELAPID is the binary. --tiny trains everything for two steps on the CPU, to check that every command works.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATES = [4e-3, 2e-3, 8e-3]
# Seconds after which a measurement of speed is given up.
LONGEST_BENCH = 60
MQAR_RATES = [2.15e-3, 4.64e-4, 1e-2]


class Job:
    """A command, its share of a GPU, an estimate of its seconds, and what must be finished before it."""

    def __init__(self, name, arguments, share, seconds, level, after=(), unless=(), trains=True):
        self.name, self.arguments, self.share, self.seconds, self.level = name, arguments, share, seconds, level
        self.after, self.unless, self.trains = list(after), list(unless), trains
        self.process = self.gpu = None
        self.ended = False


def families():
    """The lines of runs/families.txt: name, settings everywhere, and of the language model, of MQAR and of parity."""
    for line in (ROOT / "runs/families.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, *fields = [field.strip() for field in line.split("|")]
            yield name, *[field.split() for field in fields]


def sets(*settings):
    return [word for setting in settings for word in ("--set", f"model.{setting}")]


# Families that the rate which suits Mamba makes unstable, and a rate at which they are trained as well: rows of their own.
SLOWER = {"transformer": 2e-3, "linear-attention": 2e-3}

# Seconds alone on an H200 of a language model, of MQAR and of parity, to start the longest first.
SECONDS = {
    "mamba1": (45, 20, 14),
    "mamba2": (75, 32, 26),
    "transformer": (28, 15, 7),
    "lstm": (340, 32, 20),
    "retnet": (35, 20, 10),
    "gla": (60, 52, 37),
    "linear-attention": (45, 40, 30),
    "based": (65, 40, 30),
    "hgrn2": (60, 50, 40),
    "griffin": (30, 16, 8),
}
UNKNOWN = (100, 40, 30)


def language_model(name, model, level, rate=None):
    """A language model on the books; without a rate, with the best of Mamba's sweep."""
    kind = name.split("/")[-1]
    seconds = SECONDS.get(kind, SECONDS.get(kind.rsplit("-", 1)[0], UNKNOWN))[0]
    lr = ["--lr", str(rate) if rate else "RATE"]
    after = [] if rate else [f"sweep/{one:g}" for one in RATES]
    return Job(name, ["--config", "configs/families/lm.toml", *lr, *sets(*model)], 0.5, seconds, level, after)


def slower(name):
    return f"lm/{name}-{SLOWER[name]:g}"


def state_size_jobs():
    """Mamba-1 and Mamba-2 by state size. N = 16 of the first is the best run of the sweep, N = 128 of the second is the family."""
    (mamba2,) = [(every, lm) for name, every, lm, *_ in families() if name == "mamba2"]
    (mamba1,) = [(every, lm) for name, every, lm, *_ in families() if name == "mamba1"]
    sizes = [("mamba1", mamba1, n) for n in (1, 2, 4, 8)] + [("mamba2", mamba2, n) for n in (16, 32, 64)]
    jobs = [
        language_model(f"state_size/{kind}-{n}", [*model[0], *model[1], f"layer.{kind}.d_state={n}"], 1)
        for kind, model, n in sizes
    ]
    return [*jobs, language_model("lm/mamba2", [*mamba2[0], *mamba2[1]], 1)]


def sweep_jobs():
    (mamba,) = [(every, lm) for name, every, lm, *_ in families() if name == "mamba1"]
    return [language_model(f"sweep/{rate:g}", [*mamba[0], *mamba[1]], 0, rate) for rate in RATES]


def family_jobs():
    """Of every family a language model (of Mamba the sweep has it), MQAR at three rates, and parity."""
    jobs = []
    for name, every, lm, mqar, parity in families():
        _, recall, tracking = SECONDS.get(name, UNKNOWN)
        if name != "mamba1":
            jobs.append(language_model(f"lm/{name}", [*every, *lm], 1))
        if name in SLOWER:
            jobs.append(language_model(slower(name), [*every, *lm], 1, SLOWER[name]))
        others = [f"mqar/{name}-{rate:g}" for rate in MQAR_RATES]
        for place, rate in enumerate(MQAR_RATES):
            arguments = ["--task", "mqar", "--lr", f"{rate:g}", *sets(*every, *mqar)]
            level, unless = 2 + place, [other for other in others if other != others[place]]
            jobs.append(Job(others[place], arguments, 0.2, recall, level, unless=unless))
        arguments = ["--config", "configs/families/parity.toml", *sets(*every, *parity)]
        jobs.append(Job(f"parity/{name}", arguments, 0.15, tracking, 2))
    return jobs


def speed_jobs():
    """How fast each family trains and decodes, alone on a GPU. Before that a short pass of all at once compiles their kernels."""
    warm, bench = [], []
    kinds = {
        "train": ["bench", "train", "--batch", "64", "--length", "1024", "--reps", "6"],
        "decode-1": ["bench", "decode", "--batch", "1", "--context", "1024", "--reps", "128"],
        "decode-64": ["bench", "decode", "--batch", "64", "--context", "64", "--reps", "64"],
    }
    for name, every, lm, *_ in families():
        model = ["--config", "configs/families/lm.toml", *sets(*every, *lm), "--json"]
        for kind, words in kinds.items():
            short = [*words[:-1], "1"]
            short[3] = "4" if kind == "train" else short[3]
            short[5] = "1024" if kind == "train" else "8"
            warm.append(Job(f"warm/{name}-{kind}", [*short, *model], 0.08, 8, -2, trains=False))
            bench.append(Job(f"bench/{name}-{kind}", [*words, *model], 1.0, 4, -1, trains=False))
    for job in bench:
        job.after = [other.name for other in warm]
    return warm + bench


def by_name(jobs):
    """Each job once, the first by level, then the longest."""
    jobs = {job.name: job for job in reversed(jobs)}
    return sorted(jobs.values(), key=lambda job: (job.level, -job.seconds))


class Queue:
    def __init__(self, options):
        self.options = options
        self.elapid = shutil.which(os.environ.get("ELAPID", "elapid")) or os.environ.get("ELAPID", "elapid")
        self.out, self.results = pathlib.Path(options.out), pathlib.Path(options.results)
        self.gpus = options.gpus.split(",")
        self.began, self.stopping = time.time(), False
        speeds = speed_jobs() if "families" in options.what else []
        jobs = sweep_jobs()
        jobs += state_size_jobs() if "state_size" in options.what else []
        jobs += family_jobs() if "families" in options.what else []
        for job in jobs:
            job.after += [speed.name for speed in speeds]
        jobs += speeds
        only = options.only.split(",") if options.only else [""]
        self.jobs = [job for job in by_name(jobs) if any(job.name.startswith(one) for one in only)]
        self.waiting = list(self.jobs)
        self.running = []

    def result(self, name):
        file = self.results / name / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def finished(self, name):
        result = self.result(name)
        return result is not None and result.get("stopped", "finished") != "interrupted"

    def rate(self):
        """The rate of the best run of the sweep."""
        done = [(self.result(f"sweep/{rate:g}"), rate) for rate in RATES]
        done = [(result["bits_per_byte"], rate) for result, rate in done if result and result.get("bits_per_byte")]
        return min(done)[1] if done else RATES[0]

    def unnecessary(self, job):
        """Another learning rate has answered everything."""
        return any((self.result(name) or {}).get("stopped") == "accuracy" for name in job.unless)

    def command(self, job, gpu):
        device = "cpu" if self.options.tiny else "cuda"
        words = [str(self.rate()) if word == "RATE" else word for word in job.arguments]
        command = [self.elapid, "--device", device, "--threads", str(self.options.threads)]
        if not job.trains:
            tiny = {"--batch": "2", "--length": "16", "--reps": "1", "--context": "3"} if self.options.tiny else {}
            pairs = zip(["", *words], words)
            words = [tiny.get(before, word) for before, word in pairs]
            return command + ([] if self.options.tiny else ["--dtype", "bf16"]) + words
        run = self.out / job.name
        command += ["train", "--json", "--quiet", "--output", str(run), *words]
        if "configs/families/lm.toml" in words:
            command += ["--data", self.options.train, "--val", self.options.val, "--set", f"data.cache={self.out / 'cache'}"]
        if self.options.tiny:
            command += ["--steps", "2", "--batch", "2", "--set", "train.eval_batches=1", "--set", "train.eval_every=2"]
            command += ["--set", "train.dtype=f32"]
        if run.exists():
            resumable = any((run / "resume").glob("step-*")) if (run / "resume").is_dir() else False
            command.append("--resume" if resumable else "--overwrite")
        return command

    def start(self, job, gpu):
        logs = self.out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        stem = job.name.replace("/", "-")
        job.stdout, job.stderr = logs / f"{stem}.json", logs / f"{stem}.log"
        job.gpu, job.started = gpu, time.time()
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        with job.stdout.open("w") as out, job.stderr.open("a") as error:
            job.process = subprocess.Popen(
                self.command(job, gpu), cwd=ROOT, stdout=out, stderr=error, env=environment, stdin=subprocess.DEVNULL
            )
        self.running.append(job)

    def fits(self, job, gpu):
        """Whether there is room beside what runs; a measurement of speed wants a GPU of its own."""
        if job.share >= 1.0:
            return all(other.gpu != gpu for other in self.running)
        return job.share <= self.free(gpu) + 1e-6

    def free(self, gpu):
        return self.options.crowd - sum(job.share for job in self.running if job.gpu == gpu)

    def fill(self):
        """Starts what fits, in order; a job that waits for others is passed over."""
        for job in list(self.waiting):
            if self.finished(job.name) or self.unnecessary(job):
                self.waiting.remove(job)
                continue
            names = {other.name for other in self.waiting + self.running}
            if any(name in names for name in job.after):
                continue
            gpu = max(self.gpus, key=self.free)
            if self.fits(job, gpu):
                self.waiting.remove(job)
                self.start(job, gpu)
            elif job.share >= 1.0:
                return

    def reap(self):
        for job in list(self.running):
            # A second rate is not needed once the first has answered everything.
            if self.unnecessary(job) and not job.ended:
                job.ended = True
                job.process.terminate()
            if not job.trains and time.time() - job.started > LONGEST_BENCH:
                job.process.kill()
            code = job.process.poll()
            if code is None:
                continue
            self.running.remove(job)
            self.collect(job, code)

    def collect(self, job, code):
        """Copies what is small into the results."""
        to = self.results / job.name
        to.mkdir(parents=True, exist_ok=True)
        run = self.out / job.name
        try:
            result = json.loads(job.stdout.read_text())
        except ValueError:
            result = None
        if job.trains and (run / "config.toml").exists():
            shutil.copy(run / "config.toml", to / "config.toml")
        if job.trains and (run / "metrics.jsonl").exists():
            thin(run / "metrics.jsonl", to / "metrics.jsonl")
        if result is None and self.stopping:
            return
        if result is None:
            (to / "error.txt").write_text(f"exit status {code}\n{job.stderr.read_text()[-2000:]}")
            return
        for unread in ("sample", "resume", "output"):
            result.pop(unread, None)
        result["wall_seconds"] = round(time.time() - job.started, 1)
        (to / "error.txt").unlink(missing_ok=True)
        (to / "result.json").write_text(json.dumps(result))

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "stopping", True))
        last = 0
        while self.waiting or self.running:
            self.reap()
            if time.time() - self.began > self.options.seconds or self.stopping:
                self.stopping = True
                self.stop()
                break
            self.fill()
            if time.time() - last > 10:
                self.status()
                last = time.time()
            time.sleep(0.2)
        self.status()

    def stop(self):
        for job in self.running:
            job.process.terminate()
        until = time.time() + 25
        while self.running and time.time() < until:
            self.reap()
            time.sleep(0.2)
        for job in self.running:
            job.process.kill()

    def status(self):
        self.results.mkdir(parents=True, exist_ok=True)
        done = [job.name for job in self.jobs if self.finished(job.name)]
        failed = [job.name for job in self.jobs if (self.results / job.name / "error.txt").exists()]
        running = [f"{job.name}@{job.gpu} {time.time() - job.started:.0f}s" for job in self.running]
        text = (
            f"{time.time() - self.began:.0f} s: {len(done)} of {len(self.jobs)} finished, {len(self.waiting)} waiting, "
            f"failed: {' '.join(failed) or 'none'}; running: {', '.join(running) or 'none'}"
        )
        (self.results / "status.txt").write_text(text + "\n")


def thin(source, to):
    """Every tenth line, and those of validations."""
    lines = source.read_text().splitlines()
    kept = [line for i, line in enumerate(lines) if i % 10 == 0 or '"val_loss"' in line or i + 1 == len(lines)]
    to.write_text("".join(line + "\n" for line in kept))


def table(results):
    """One line a finished job."""
    for file in sorted(results.rglob("result.json")):
        result = json.loads(file.read_text())
        keys = ("stopped", "step", "bits_per_byte", "accuracy", "tokens_per_second", "seconds", "wall_seconds", "device_bytes")
        words = [f"{key}={result[key]:.5g}" if isinstance(result[key], float) else f"{key}={result[key]}" for key in keys if result.get(key) is not None]
        print(file.parent.relative_to(results), *words)
    for file in sorted(results.rglob("error.txt")):
        print(file.parent.relative_to(results), "failed:", file.read_text().strip().replace("\n", " | ")[-300:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "status"])
    parser.add_argument("what", nargs="*", choices=["state_size", "families", []])
    parser.add_argument("--train", default="books/train.txt")
    parser.add_argument("--val", default="books/val.txt")
    parser.add_argument("--gpus", default=os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    parser.add_argument("--crowd", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--out", default="runs/out/experiments")
    parser.add_argument("--results", default="runs/families")
    parser.add_argument("--only", help="names of jobs, or how they begin, with commas between")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.command == "status":
        table(pathlib.Path(options.results))
        return
    queue = Queue(options)
    if options.dry_run:
        for job in queue.jobs:
            done = "finished " if queue.finished(job.name) else ""
            print(f"{done}{job.name} ({job.share:g} of a GPU, about {job.seconds} s):", *queue.command(job, "0"))
        return
    queue.run()
    print((queue.results / "status.txt").read_text(), end="")


if __name__ == "__main__":
    sys.exit(main())
