"""The spool directory: steps, requests and faults in SQLite, events as lines of JSON.

Commands add jobs and requests; only the negotiator changes a step that is there.
"""

import fcntl
import json
import os
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS counter (next INTEGER);
CREATE TABLE IF NOT EXISTS step
    (job INTEGER, number INTEGER, record TEXT, PRIMARY KEY (job, number));
CREATE TABLE IF NOT EXISTS request (id INTEGER PRIMARY KEY, due REAL, verb TEXT, arguments TEXT);
CREATE TABLE IF NOT EXISTS fault
    (id INTEGER PRIMARY KEY, kind TEXT, remaining INTEGER, options TEXT);
CREATE TABLE IF NOT EXISTS machine (name TEXT PRIMARY KEY, state TEXT);
"""


class Spool:
    """One site's memory, in a directory that `$LLSIM_SPOOL` names."""

    def __init__(self, directory):
        self.directory = Path(directory).absolute()
        self._database = sqlite3.connect(
            self.directory / "spool.db", timeout=30, isolation_level=None, check_same_thread=False
        )

    @classmethod
    def of_environment(cls):
        """Return the spool that the environment names."""
        directory = os.environ.get("LLSIM_SPOOL")
        if not directory or not Path(directory, "spool.db").exists():
            raise SystemExit(
                "LLSIM_SPOOL does not name a spool directory: llsimctl start makes one"
            )
        return cls(directory)

    @classmethod
    def create(cls, directory, first_id):
        """Make a spool directory, or open the one that is there."""
        Path(directory, "jobs").mkdir(parents=True, exist_ok=True)
        spool = cls(directory)
        spool._database.executescript(SCHEMA)
        with spool.transaction():
            if not spool._rows("SELECT next FROM counter"):
                spool._database.execute("INSERT INTO counter VALUES (?)", [first_id])
        return spool

    def close(self):
        """Close the database."""
        self._database.close()

    @contextmanager
    def transaction(self):
        """Keep other writers out until the block ends; undo it when it raises."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _rows(self, query, arguments=()):
        return self._database.execute(query, arguments).fetchall()

    # steps

    def next_job(self):
        """Return a number that no other job has; only inside a transaction."""
        [(number,)] = self._rows("SELECT next FROM counter")
        self._database.execute("UPDATE counter SET next = next + 1")
        return number

    def save(self, *steps):
        """Insert or replace `steps`."""
        rows = [(step["job"], step["number"], json.dumps(step)) for step in steps]
        self._database.executemany("INSERT OR REPLACE INTO step VALUES (?, ?, ?)", rows)

    def steps(self, after_job=-1):
        """Return all steps, the ended ones too, in the order of submission."""
        query = "SELECT record FROM step WHERE job > ? ORDER BY job, number"
        return [json.loads(record) for (record,) in self._rows(query, [after_job])]

    # requests to the negotiator

    def request(self, verb, *arguments, delay_s=0.0):
        """Ask the negotiator for something, in `delay_s` seconds at the earliest."""
        row = [time.time() + delay_s, verb, json.dumps(arguments)]
        self._database.execute("INSERT INTO request (due, verb, arguments) VALUES (?, ?, ?)", row)

    def due_requests(self):
        """Return and forget the requests that are due, in their order."""
        now = time.time()
        if not self._rows("SELECT 1 FROM request WHERE due <= ? LIMIT 1", [now]):
            return []
        with self.transaction():
            rows = self._rows(
                "SELECT verb, arguments FROM request WHERE due <= ? ORDER BY id", [now]
            )
            self._database.execute("DELETE FROM request WHERE due <= ?", [now])
        return [(verb, json.loads(arguments)) for verb, arguments in rows]

    # faults

    def add_fault(self, kind, count=None, **options):
        """Let the next `count` occasions, or all of them, go wrong in the way of `kind`."""
        row = [kind, count, json.dumps(options)]
        self._database.execute("INSERT INTO fault (kind, remaining, options) VALUES (?, ?, ?)", row)

    def clear_faults(self, kind=None):
        """Forget the faults of `kind`, or all."""
        self._database.execute("DELETE FROM fault WHERE kind = ? OR ? IS NULL", [kind, kind])

    def take_fault(self, kind):
        """Return the options of a fault that strikes now, or None."""
        if not self._rows("SELECT 1 FROM fault WHERE kind = ?", [kind]):
            return None
        with self.transaction():
            rows = self._rows(
                "SELECT id, remaining, options FROM fault WHERE kind = ? ORDER BY id", [kind]
            )
            if not rows:
                return None
            identity, remaining, options = rows[0]
            if remaining is not None:
                self._database.execute(
                    "UPDATE fault SET remaining = ? WHERE id = ?", [remaining - 1, identity]
                )
                self._database.execute("DELETE FROM fault WHERE remaining <= 0")
        return json.loads(options)

    # machines

    def machine_states(self):
        """Return the states of machines that are not simply up."""
        return dict(self._rows("SELECT name, state FROM machine"))

    def set_machine_state(self, name, state):
        """Let machine `name` be `state`: Idle, Down or Drain."""
        self._database.execute("INSERT OR REPLACE INTO machine VALUES (?, ?)", [name, state])

    # events

    def log(self, event, **details):
        """Append one line to events.jsonl."""
        line = json.dumps({"time": time.time(), "event": event, **details}) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(self.directory / "events.jsonl", flags, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def events(self):
        """Return what has been logged."""
        path = self.directory / "events.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    # the negotiator's lock says whether there is a central manager

    def hold_negotiator_lock(self):
        """Return the open lock file of the one negotiator, or None when there is one already."""
        lock = (self.directory / "negotiator.lock").open("w")
        for _ in range(100):  # a command that asks for the central manager has it for an instant
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.01)
            else:
                return lock
        lock.close()
        return None

    def has_negotiator(self):
        """Say whether a negotiator is alive."""
        with open(self.directory / "negotiator.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False
