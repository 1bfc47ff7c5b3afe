"""realize as a peer of the benchmark of movers: see "Speed" in docs/design.md.

The programs are those in REALIZE_BIN, else in target/release below the working directory.
"""

import os
import subprocess

BIN = os.path.abspath(os.environ.get("REALIZE_BIN") or "target/release")


class Realize:
    name = "realize"

    def supports(self, case):
        return True

    def env(self, run):
        return {}

    def key(self, run, name):
        """A secret key that outlives runs, and its public half as keygen prints it."""
        path = os.path.join(run.h.keys, "realize-" + name)
        public = path + ".pub"
        if not os.path.exists(public):
            made = subprocess.run(
                [os.path.join(BIN, "realize"), "keygen", "--out", path], check=True, capture_output=True, text=True
            )
            lines = [line for line in made.stdout.splitlines() if line.startswith("ed25519:")]
            with open(public, "w") as file:
                file.write(lines[0])
        with open(public) as file:
            return path, file.read()

    def start(self, run):
        self.mover, mover = self.key(run, "mover")
        daemon, self.public = self.key(run, "daemon")
        config = run.tmp(
            "realized.toml",
            f"""listen = "127.0.0.1:{run.port}"
key = "{daemon}"
[directories.dst]
path = "{run.dst}"
[peers.mover]
key = "{mover}"
rights.dst = ["read", "write", "replace", "delete"]
""",
        )
        run.serve("B", [os.path.join(BIN, "realized"), "--config", config], run.port)

    def command(self, run):
        hosts = run.tmp("hosts.toml", f"""[hosts.b]\nkey = "{self.public}"\naddress = "127.0.0.1:{run.cport}"\n""")
        return [os.path.join(BIN, "realize"), "-q", "--key", self.mover, "--hosts", hosts, run.src, "b::dst"]


PEERS["realize"] = Realize()  # noqa: F821 (the benchmark's own table)
