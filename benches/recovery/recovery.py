"""How long a job of two workers stands still when something dies, and what it does again: Marey and torchrun.

    python3 benches/recovery/recovery.py BIN DATASET FOLDER [--repeats 10] [--every 20] [--only NAMES] [--json OUT]

See run.sh. All times are in seconds, from the signal to the line of the log that says so, as it arrives here:

    detected   the loss is spoken of
    next       the next step that the job finishes, whether or not it had finished it before
    new        the next step that it had not finished before
    step       the median time between two steps; where workers join or leave, of those that follow
    stall      the longest time between two steps around the event, less the median step
    steps      the same in steps
    lost       steps that were finished before and are done again; `clips` are theirs
    started    processes that were started again
"""
import argparse, json, os, re, signal, statistics, sys, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from processes import Program, below

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BATCH = 8
STEP = re.compile(r"\bstep (\d+) of \d+: loss")
JOB = """
seed = 5
[data]
url = "{data}"
lanes = 8
frames = {frames}
threads = 1
augment = {{ crop = 48, scale = {{ kind = "short_side", min = 48, max = 60 }}, flip = 0.0 }}
eval = {{ short_side = 54, crop = 48 }}
[model]
arch = "slowfast"
width = {width}
beta = 4
fusion_kernel = 7
dropout = 0.0
[train]
epochs = 100000
global_batch = 8
eval_every_epochs = 0
[optimizer]
kind = "adamw"
lr = 1e-3
weight_decay = 0.05
[checkpoint]
every_steps = {every}
[cluster]
workers = 2
min_workers = {least}
join_window = "0.1s"
"""


class Marey:
    """A coordinator and two workers with one trainer each."""

    name = "Marey"

    def __init__(self, a, folder, least):
        self.bin, self.folder, self.run = a.bin, folder, os.path.join(folder, "run")
        self.config = os.path.join(folder, "job.toml")
        os.makedirs(folder)
        with open(self.config, "w") as f:
            f.write(JOB.format(data=a.dataset, every=a.every, least=least, width=a.width, frames=a.frames))
        self.port = 0
        self.workers = []
        self.coordinate()
        for _ in range(2):
            self.add()
        self.steps(10)

    def coordinate(self):
        self.coordinator = Program(
            [f"{self.bin}/marey-coordinator", "--listen", f"127.0.0.1:{self.port}", "--run", self.run, "--config",
             self.config], os.path.join(self.folder, "coordinator.log"), {"MAREY_LOG": "info,coordinator=debug"})
        _, found = self.coordinator.wait(lambda l: re.match(r"listening on \S+:(\d+)", l), "the coordinator's address")
        self.port = int(found[1])

    def add(self):
        name = os.path.join(self.folder, f"worker-{time.monotonic_ns()}.log")
        self.workers.append(Program(
            [f"{self.bin}/marey-worker", "run", "--coordinator", f"127.0.0.1:{self.port}", "--devices", "cpu:1",
             "--threads", "1"], name, {"RUST_LOG": "info,clips=debug"}))

    def steps(self, n):
        """Waits for n steps that are reported from now on; the number of the last."""
        for _ in range(n):
            _, found = self.coordinator.wait(STEP.search, "a step")
        return int(found[1])

    def finished(self):
        """Every step report so far: time and step."""
        self.coordinator.catch_up()
        found = ((at, STEP.search(line)) for at, line in self.coordinator.lines)
        return [(at, int(f[1])) for at, f in found if f]

    def after(self, step):
        """When a step after this one is reported."""
        return self.coordinator.wait(lambda l: (f := STEP.search(l)) and int(f[1]) > step, f"a step after {step}")[0]

    def generation(self, workers):
        return self.coordinator.wait(lambda l: re.search(rf"generation \d+: {workers} worker", l),
                                     f"a generation of {workers}")[0]

    def end(self):
        self.coordinator.end()
        for worker in self.workers:
            worker.end()


class Torchrun:
    """torchrun with two processes, which it starts again together."""

    name = "torchrun"

    def __init__(self, a, folder):
        os.makedirs(folder)
        self.agent = Program(
            [os.path.join(ROOT, "scripts/reference-python"), "-m", "torch.distributed.run", "--standalone",
             "--nproc-per-node", "2", "--max-restarts", "1000", os.path.join(ROOT, "benches/recovery/ddp.py"), folder,
             "--steps", "1000000", "--every", str(a.every)], os.path.join(folder, "torchrun.log"),
            # Else the processes that were started again find the dead ones' addresses in the store
            # (pytorch issue 135712) and, with Gloo, die until the restarts are used up.
            {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        self.pids = {}
        self.steps(10)

    def heard(self, line):
        """The process and the number of a finished step, if the line is about one."""
        if not line.startswith("{"):
            return None
        said = json.loads(line)
        if said["event"] == "begin":
            self.pids[said["rank"]] = said["pid"]
        return (said["pid"], said["step"]) if said["event"] == "step" else None

    def steps(self, n):
        for _ in range(n):
            _, (_, last) = self.agent.wait(self.heard, "a step")
        return last

    def end(self):
        self.agent.end()


def step_of(job, offset, every):
    """Waits until `offset` steps have passed since a checkpoint; the number of the last step."""
    while True:
        step = job.steps(1)
        if step % every == offset:
            return step


def of_torchrun(a, folder):
    job = Torchrun(a, folder)
    for i in range(a.repeats):
        done = step_of(job, offset_of(i, a), a.every)
        pids = dict(job.pids)
        killed = time.monotonic()
        os.kill(pids[1], signal.SIGKILL)

        def detected(line):
            job.heard(line)
            return "failed (exitcode" in line or "losing signal" in line

        seen, _ = job.agent.wait(detected, "the loss in torchrun's log")
        for _, line in job.agent.lines:
            done = max(done, (job.heard(line) or (0, 0))[1])
        job.pids = dict(pids)
        # Not what the survivor still said.
        fresh = lambda line: (found := job.heard(line)) and found[0] not in pids.values() and found
        after, (_, step) = job.agent.wait(fresh, "a step")
        new = after if step > done else job.agent.wait(lambda l: (job.heard(l) or (0, 0))[1] > done, "a new step")[0]
        lost, started = done - step + 1, sum(job.pids[r] != pids[r] for r in pids)
        yield {"detected": seen - killed, "next": after - killed, "new": new - killed, "lost": lost,
               "clips": lost * BATCH, "started": started}
        job.steps(5)
    job.end()


def offset_of(i, a):
    """Where between two checkpoints the i-th blow falls: evenly spread."""
    return (1 + i * 7) % a.every


def of_marey_kill(a, folder, least):
    job = Marey(a, folder, least)
    job.coordinator.wait(lambda l: "checkpoint of step" in l, "a checkpoint")
    for i in range(a.repeats):
        step_of(job, offset_of(i, a), a.every)
        victim, survivor = job.workers[i % 2], job.workers[1 - i % 2]
        survivor.catch_up()
        before = trainers(job)
        killed = time.monotonic()
        os.kill(below(victim.child.pid)[0], signal.SIGKILL)
        seen, _ = job.coordinator.wait(lambda l: "lost worker" in l, "the loss")
        done = max(step for _, step in job.finished())
        _, found = survivor.wait(lambda l: re.search(r"(?:going on from|resumed from the checkpoint of) step (\d+)", l),
                                 "from where the survivor goes on")
        begun = int(found[1])
        after = job.after(begun)
        new = after if begun >= done else job.after(done)
        if least < 2:
            job.generation(2)
        job.steps(5)
        lost, started = max(0, done - begun), len(set(trainers(job)) - set(before))
        yield {"detected": seen - killed, "next": after - killed, "new": new - killed, "lost": lost,
               "clips": lost * BATCH, "started": started}
    job.end()


def trainers(job):
    return [pid for worker in job.workers for pid in below(worker.child.pid)]


def of_marey_join_and_leave(a, folder):
    """A worker is told to stop, and one comes: how long the others stand still."""
    job = Marey(a, folder, 1)
    for _ in range(a.repeats):
        job.steps(8)
        leaver = job.workers.pop(0)
        leaver.child.send_signal(signal.SIGTERM)
        formed = job.generation(1)
        job.steps(8)
        yield "leave", gap(job, formed)
        assert leaver.end() == 0
        job.add()
        formed = job.generation(2)
        job.steps(8)
        yield "join", gap(job, formed)
    job.end()


def of_marey_coordinator(a, folder):
    """The coordinator is killed and started again: what the trainers see of it."""
    job = Marey(a, folder, 2)
    began_step = re.compile(r"generation (\d+), rank 0, epoch \d+, step (\d+), clips:")
    for i in range(a.repeats):
        job.steps(10)
        done = max(step for _, step in job.finished())
        began = time.monotonic()
        job.coordinator.end(signal.SIGKILL)
        job.coordinate()
        new = job.after(done)
        job.steps(10)
        for worker in job.workers:
            worker.catch_up()
        own = [(at, began_step.search(line)) for worker in job.workers for at, line in worker.lines]
        own = sorted((at, int(f[2]), int(f[1])) for at, f in own if f)
        assert len({generation for _, _, generation in own}) == 1, "the generation went on"
        twice = len(own) - len({step for _, step, _ in own})
        yield {"new": new - began, "lost": twice, "clips": twice * BATCH, "started": 1} | stall(own, began)
    job.end()


def gap(job, formed):
    """How long the job stood still when its workers became others, and what it did twice. With other workers a step takes
    another time: the one around the change is compared with those that follow, which are as it is."""
    steps = job.finished()
    numbers = [step for _, step in steps]
    twice = len(numbers) - len(set(numbers))
    change = min(at for at, _ in steps if at > formed)
    between = [(b[0], b[0] - a[0]) for a, b in zip(steps, steps[1:])]
    took = next(t for at, t in between if at == change)
    step = statistics.median(t for at, t in between if at > change)
    stood = max(0.0, took - step)
    return {"step": step, "stall": stood, "steps": stood / step, "lost": twice, "clips": twice * BATCH}


def stall(steps, since):
    """The median time between two steps, and the longest after `since` less that."""
    between = [(b[0], b[0] - a[0]) for a, b in zip(steps, steps[1:])]
    step = statistics.median(t for _, t in between)
    return {"step": step, "stall": max(0.0, max(t for at, t in between if at > since) - step)}


SCENARIOS = {
    "torchrun-kill": lambda a, f: (("torchrun: a worker killed", r) for r in of_torchrun(a, f)),
    "marey-kill": lambda a, f: (("Marey: a worker killed, the other goes on", r) for r in of_marey_kill(a, f, 1)),
    "marey-kill-wait": lambda a, f: (("Marey: a worker killed, both needed", r) for r in of_marey_kill(a, f, 2)),
    "marey-elastic": lambda a, f: ((f"Marey: a worker {'joins' if k == 'join' else 'leaves'}", r)
                                   for k, r in of_marey_join_and_leave(a, f)),
    "marey-coordinator": lambda a, f: (("Marey: the coordinator killed", r) for r in of_marey_coordinator(a, f)),
}
COLUMNS = ["detected", "next", "new", "step", "stall", "steps", "lost", "clips", "started"]


def table(results):
    print("| scenario (min / median / max) | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, rows in results.items():
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in rows if column in row]
            form = "{:.2f}" if column not in ("lost", "clips", "started") else "{:.0f}"
            cells.append(" / ".join(form.format(f(values)) for f in (min, statistics.median, max)) if values else "")
        print(f"| {name}, {len(rows)} times | " + " | ".join(cells) + " |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bin", help="the folder of Marey's programs")
    p.add_argument("dataset")
    p.add_argument("folder", help="for runs and logs; it must not exist")
    p.add_argument("--repeats", type=int, default=10)
    p.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    p.add_argument("--width", type=int, default=16, help="of Marey's network; torchrun's is always 16")
    p.add_argument("--frames", type=int, default=8, help="of Marey's clips, at most 16; torchrun's have 8")
    p.add_argument("--only", help=f"some of {','.join(SCENARIOS)}")
    p.add_argument("--json", help="where every single figure goes")
    a = p.parse_args()
    names = a.only.split(",") if a.only else list(SCENARIOS)
    if unknown := [n for n in names if n not in SCENARIOS]:
        p.error(f"unknown scenarios: {', '.join(unknown)}")
    results = {}
    for name in names:
        for what, row in SCENARIOS[name](a, os.path.join(a.folder, name)):
            results.setdefault(what, []).append(row)
            print(json.dumps({"scenario": what, **row}), file=sys.stderr, flush=True)
    table(results)
    if a.json:
        with open(a.json, "w") as f:
            json.dump({"every": a.every, "batch": BATCH, "results": results}, f, indent=1)


if __name__ == "__main__":
    main()
