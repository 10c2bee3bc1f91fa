"""Programs whose lines are read with the time at which they came, and the processes below them."""
import atexit, os, queue, signal, subprocess, threading, time

# No line is awaited longer than this.
PATIENCE = 300.0


class Program:
    """A running program. All its lines are kept as (seconds, text)."""

    def __init__(self, args, log, env=None):
        self.child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                      env={**os.environ, **(env or {})}, text=True, errors="replace")
        atexit.register(self.end)
        self.lines, self.arrived = [], queue.Queue()
        self.log = open(log, "a")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            at = time.monotonic()
            self.log.write(f"{at:.3f} {line}")
            self.arrived.put((at, line.rstrip("\n")))
        self.log.flush()
        self.arrived.put(None)

    def wait(self, wanted, what):
        """The first coming line for which `wanted(text)` is true: its time, and what was returned."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise SystemExit(f"error: failed to see {what} within {PATIENCE:.0f} s; the log is {self.log.name}")
            if line is None:
                raise SystemExit(f"error: failed to see {what}: the program has ended; the log is {self.log.name}")
            self.lines.append(line)
            found = wanted(line[1])
            if found:
                return line[0], found

    def catch_up(self):
        """Takes in what has come so far."""
        while True:
            try:
                line = self.arrived.get_nowait()
            except queue.Empty:
                return
            if line is not None:
                self.lines.append(line)

    def end(self, how=signal.SIGTERM):
        """Ends it and waits."""
        if self.child.poll() is None:
            self.child.send_signal(how)
        return self.child.wait(timeout=120)


def below(pid):
    """The processes that `pid` has started itself."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    if int(stat.read().rsplit(") ", 1)[1].split()[1]) == pid:
                        found.append(int(entry))
            except OSError:
                pass
    return found
