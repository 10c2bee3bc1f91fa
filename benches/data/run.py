"""Marey's stream and its peers on the same clips, one process a measurement, in turns.

    run.py FOLDER [--settings raw jpeg s3 s3-20ms] [--repeats N] [--json OUT]
    run.py FOLDER --faults [--json OUT]

The first turn tries every peer with 0 and 2 workers (and Parquet through Polars as well); the better setting goes on.
FOLDER is what run.sh prepared.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import store

HERE = Path(__file__).parent
PEERS = ["mosaic", "litdata", "parquet", "webdataset", "lance", "grain", "torchcodec"]
# Grain's ArrayRecord reads no S3.
ON_S3 = [p for p in PEERS if p != "grain"]
FAULTS = {
    "none": [],
    "15 % of GETs answered 503": ["GET * 0.15 answer 503"],
    "4 % of GETs stalled 45 s": ["GET * 0.04 stall 45s"],
}
PATIENCE = 120
HEAD = "| loader | workers | min | median | max clips/s | Marey's median over it | CPU ms a clip | of Marey's |"


def marey(folder, extra, environment):
    program = Path(os.environ["CARGO_TARGET_DIR"]) / "debug/marey-shards"
    command = [program, "bench", f"{folder}/marey", "--whole", "--json", *map(str, extra)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    report = json.loads(done.stdout)
    # Opening the dataset counts, as it does for a peer from S3.
    return report | {"rate": report["clips"] / (report["seconds"] + report["open_seconds"])}


def peer(name, folder, extra, environment):
    command = [sys.executable, HERE / "peers.py", name, folder, *map(str, extra)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"error": f"unfinished after {PATIENCE} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        noise = [l for l in done.stderr.strip().splitlines() if l and not l.startswith(" ") and "resource_tracker" not in l]
        return {"error": (noise or ["it said nothing"])[-1][:300], "status": done.returncode}
    return json.loads(lines[-1])


def variants(name):
    """The settings that the first turn tries."""
    # Lance's loader hands out nothing in a second epoch of workers that stay, and starts them anew otherwise.
    for workers in (0,) if name == "lance" else (0, 2):
        yield ["--workers", workers]
        if name == "parquet":
            yield ["--workers", workers, "--variant", "memory"]


def measure(setting, folder, repeats, environment, s3=None):
    jpeg = setting.startswith("jpeg")
    kind = "jpeg" if jpeg else "raw"
    batch = ["--batch", 8 if jpeg else 16]
    ours = ["--ceiling"] if jpeg or s3 else []
    ours += ["--epochs", 1] if s3 else ["--epochs", 6 if jpeg else 30, "--seconds", 8]
    theirs = ["--s3", f"{s3}/{kind}", "--cold"] if s3 else ["--epochs", 3 if jpeg else 6]
    place = f"{s3}/{kind}" if s3 else folder / kind
    # From S3 also in groups: the peers shuffle inside files and windows too.
    shuffles = {"marey": [], "marey grouped": ["--grouped", "64 MiB"]} if s3 else {"marey": []}
    chosen, runs = {}, {name: [] for name in shuffles}
    for turn in range(repeats):
        for name, shuffle in shuffles.items():
            runs[name].append(note(name, marey(place, batch + ours + shuffle, environment)))
        for name in ON_S3 if s3 else PEERS:
            tried = [chosen[name]] if name in chosen else list(variants(name))
            results = [(note(name, peer(name, folder / kind, batch + theirs + v, environment), v), v) for v in tried]
            best, chosen[name] = max(results, key=lambda r: r[0].get("rate", 0))
            runs.setdefault(name, []).append(best | {"setting": chosen[name], "tried": [r for r, _ in results]})
    return runs


def note(name, result, setting=()):
    result["load"] = os.getloadavg()[0]
    print(f"  {name:12} {' '.join(map(str, setting)):32} {result.get('rate', 0):9.1f} clips/s {result.get('cpu_seconds_per_clip', 0) * 1e3:8.3f} ms CPU  load {result['load']:.1f}  {result.get('error', '')}", flush=True)
    return result


def table(runs):
    """Rows of Markdown: min, median, max, CPU time a clip, and how many times the peer's are Marey's medians."""
    cpu = {name: statistics.median(r.get("cpu_seconds_per_clip", 0) for r in all) * 1e3 for name, all in runs.items()}
    rates = {name: sorted(r.get("rate", 0) for r in all) for name, all in runs.items()}
    ours = statistics.median(rates["marey"])
    for name, r in rates.items():
        setting = " ".join(map(str, runs[name][-1].get("setting", [])[1:])).replace("--variant", "") or "-"
        median = statistics.median(r)
        times = f"{ours / median:.1f}" if median else "-"
        yield f"| {name} | {setting} | {r[0]:.0f} | {median:.0f} | {r[-1]:.0f} | {times} | {cpu[name]:.2f} | {cpu[name] / cpu['marey']:.1f} |"


def faults(folder, environment, endpoint):
    """Every loader under every fault, once: seconds, what it handed out, what it said."""
    found = {}
    extra = ["--batch", 16, "--s3", f"s3://{store.BUCKET}/raw", "--cold", "--check"]
    for fault, rules in FAULTS.items():
        with store.proxy(endpoint, rules) as through:
            at = environment | {"AWS_ENDPOINT_URL": through}
            found[fault] = {"marey": marey(f"s3://{store.BUCKET}/raw", ["--epochs", 1, "--seconds", 100], at)}
            for name in ("mosaic", "litdata", "parquet", "webdataset", "lance"):
                found[fault][name] = peer(name, folder / "raw", extra, at)
            for name, result in found[fault].items():
                say(fault, name, result)
    found["one byte flipped"] = flipped(folder, environment)
    return found


def flipped(folder, environment):
    """One byte in the middle of each format's largest file."""
    found = {}
    for name in ("marey", "mosaic", "mosaic validate", "litdata", "parquet", "webdataset", "lance", "grain"):
        form, variant = (name.split() + [""])[:2]
        with tempfile.TemporaryDirectory(dir=folder) as spoilt:
            copy = Path(spoilt) / "raw"
            shutil.copytree(folder / "raw" / form, copy / form)
            largest = max((f for f in (copy / form).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
            with open(largest, "r+b") as file:
                file.seek(largest.stat().st_size // 2)
                byte = file.read(1)[0]
                file.seek(-1, 1)
                file.write(bytes([byte ^ 1]))
            if form == "marey":
                found[name] = marey(copy, ["--epochs", 1], environment)
            else:
                # What was written is looked up beside the copy.
                (copy / "marey").symlink_to(folder / "raw/marey")
                found[name] = peer(form, copy, ["--epochs", 1, "--check", *(["--variant", variant] if variant else [])], environment)
        say("one byte flipped", name, found[name])
    return found


def say(fault, name, result):
    if "error" in result:
        text = f"error: {result['error']}"
    else:
        text = f"{result['clips']} clips in {result['seconds']:.1f} s"
        if "wrong" in result:
            text += f", {result['wrong']} wrong, {result['of'] - result['distinct'] + result['wrong']} missing"
    print(f"  {fault:28} {name:16} {text}", flush=True)


def main():
    # So that the servers end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", nargs="+", default=["raw", "jpeg", "s3", "s3-20ms"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--prepare", action="store_true", help="only fill the S3 server")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cores": os.cpu_count(), "load_before": os.getloadavg()}
    environment = os.environ | store.KEYS
    with ExitStack() as stack:
        endpoint = None
        if args.faults or args.prepare or any("s3" in s for s in args.settings):
            endpoint = stack.enter_context(store.server(args.folder / "s3"))
            store.upload(endpoint, args.folder)
            environment["AWS_ENDPOINT_URL"] = endpoint
        if args.prepare:
            return
        if args.faults:
            found["faults"] = faults(args.folder, environment, endpoint)
        for setting in [] if args.faults else args.settings:
            print(f"{setting}:", flush=True)
            with ExitStack() as inner:
                at = dict(environment)
                if setting.endswith("20ms"):
                    at["AWS_ENDPOINT_URL"] = inner.enter_context(store.proxy(endpoint, ["* * 1 delay 20ms"]))
                s3 = f"s3://{store.BUCKET}" if "s3" in setting else None
                found[setting] = measure(setting, args.folder, args.repeats, at, s3)
            print("\n".join([HEAD, "|---" * 8 + "|", *table(found[setting])]), flush=True)
    found["load_after"] = os.getloadavg()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
