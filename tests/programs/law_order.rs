//! The order of the law, read from the system calls of the built program.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::support::*;

const LARGE: usize = (3 << 20) + 5;

/// A system call that succeeded, with the lines of the trace at which it began and ended.
#[derive(Debug)]
struct Call {
    begin: usize,
    end: usize,
    name: String,
    /// What is between the parentheses, descriptors with their paths, and what follows.
    text: String,
}

impl Call {
    /// Panics unless this was over when `later` began.
    #[track_caller]
    fn assert_before(&self, later: &Call) {
        assert!(self.end < later.begin, "in the wrong order:\n{self:?}\n{later:?}");
    }
}

/// The system calls of one run, in the order in which they began.
struct Trace {
    calls: Vec<Call>,
    source: PathBuf,
    target: PathBuf,
}

impl Trace {
    /// Moves `source` to `target` under the eyes of strace.
    #[track_caller]
    fn of_move(source: &Path, target: &Path) -> Self {
        Self::of_move_with(&[], source, target)
    }

    /// The same with options.
    #[track_caller]
    fn of_move_with(options: &[&str], source: &Path, target: &Path) -> Self {
        let has_strace = Run::program("sh").args(["-c", "command -v strace"]).run();
        assert!(
            has_strace.status.success(),
            "this test needs strace: install it (tests/run does)"
        );
        let dir = Scratch::in_memory();
        let log = dir.join("trace");
        Run::program("strace")
            .args(["-f", "-y", "-tt", "-s", "8", "-e", "signal=none", "-o"])
            .args([&log, Path::new(env!("CARGO_BIN_EXE_realize"))])
            .args(options)
            .args([source, target])
            .run()
            .expect_code(0);
        let text = fs::read(&log).unwrap();
        let mut calls = parse(&String::from_utf8_lossy(&text));
        calls.sort_by_key(|call| call.begin);
        assert!(calls.len() > 100, "strace saw almost nothing: may it trace here?");
        Self {
            calls,
            source: source.to_owned(),
            target: target.to_owned(),
        }
    }

    /// All calls of one of the `|`-separated `names` whose text holds all of `parts`.
    fn all(&self, names: &str, parts: &[&str]) -> Vec<&Call> {
        let is_it = |call: &&Call| {
            names.split('|').any(|name| call.name == name) && parts.iter().all(|part| call.text.contains(part))
        };
        self.calls.iter().filter(is_it).collect()
    }

    /// The only such call.
    #[track_caller]
    fn one(&self, names: &str, parts: &[&str]) -> &Call {
        let found = self.all(names, parts);
        assert_eq!(found.len(), 1, "{names} of {parts:?}: {found:#?}");
        found[0]
    }

    /// The calls by which the source at `path` goes: set aside, then deleted.
    #[track_caller]
    fn assert_source_goes(&self, path: &str) -> (&Call, &Call) {
        let (parent, name) = self.place(&self.source, path);
        let gone = format!("\".{name}.realize-gone\"");
        let aside = self.one("renameat2", &[&parent, &format!("\"{name}\""), &gone]);
        let unlink = self.one("unlinkat", &[&parent, &gone]);
        aside.assert_before(unlink);
        (aside, unlink)
    }

    /// That the directory of `path` was synced between `published` and `deleted`, and that each above it was, since
    /// what leads to `path` was made in it.
    #[track_caller]
    fn assert_name_durable(&self, path: &str, published: Option<&Call>, deleted: &Call) {
        let mut below: Option<String> = None;
        let mut dir = Path::new(path).parent().unwrap().to_owned();
        loop {
            let shown = format!(
                "<{}>",
                self.target.join(&dir).display().to_string().trim_end_matches('/')
            );
            let since = match &below {
                None => published,
                Some(name) => self.all("mkdirat|mkdir", &[&shown, &format!("\"{name}\"")]).pop(),
            };
            let is_sync = |sync: &&&Call| sync.end < deleted.begin && since.is_none_or(|since| since.end < sync.begin);
            let syncs = self.all("fsync", &[&shown]);
            assert!(
                syncs.iter().any(|sync| is_sync(&sync)),
                "{shown} not synced between {since:?} and {deleted:?}: {syncs:#?}"
            );
            below = dir.file_name().map(|name| name.to_str().unwrap().to_owned());
            if below.is_none() {
                return;
            }
            dir.pop();
        }
    }

    /// That the file at `path` went by the law.
    #[track_caller]
    fn assert_copied(&self, path: &str) {
        let (parent, name) = self.place(&self.target, path);
        let partial = format!("{}/.{name}.realize-part>", parent.trim_end_matches('>'));
        let quoted = format!("\".{name}.realize-part\"");
        let create = self.one("openat", &[&parent, &quoted, "O_CREAT|O_EXCL", "0600"]);
        let writes = self.all("pwrite64|pwritev|write", &[&partial]);
        assert!(!writes.is_empty(), "nothing was written to {partial}");
        let mode = self.one("fchmod", &[&partial]);
        let mtime = self.one("utimensat", &[&partial]);
        let sync = *self
            .all("fsync|fdatasync", &[&partial])
            .last()
            .expect("the partial is synced");
        let publish = self.one(
            "renameat2",
            &[&parent, &quoted, &format!("\"{name}\""), "RENAME_NOREPLACE"],
        );
        let (aside, _) = self.assert_source_goes(path);
        for write in &writes {
            create.assert_before(write);
            write.assert_before(sync);
        }
        for length in self.all("ftruncate", &[&partial]) {
            length.assert_before(sync);
        }
        mode.assert_before(sync);
        mtime.assert_before(sync);
        sync.assert_before(publish);
        publish.assert_before(aside);
        self.assert_name_durable(path, Some(publish), aside);
    }

    /// That the equal file at `path` was read back from the device before its source went.
    #[track_caller]
    fn assert_verified(&self, path: &str) {
        let (parent, name) = self.place(&self.target, path);
        let final_file = format!("{}/{name}>", parent.trim_end_matches('>'));
        let sync = self.all("fsync", &[&final_file])[0];
        let reads = self.all("pread64|preadv|read", &[&final_file]);
        let drops = self.all("fadvise64", &[&final_file, "POSIX_FADV_DONTNEED"]);
        let (aside, _) = self.assert_source_goes(path);
        assert!(!reads.is_empty() && !drops.is_empty());
        sync.assert_before(drops[0]);
        for read in reads {
            drops[0].assert_before(read);
            read.assert_before(aside);
        }
        self.assert_name_durable(path, None, aside);
        assert!(self.all("pwrite64|ftruncate", &[&final_file]).is_empty());
    }

    /// How strace shows the directory that `path` is in, and the name in it.
    fn place(&self, root: &Path, path: &str) -> (String, String) {
        let path = root.join(path);
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (format!("<{}>", path.parent().unwrap().display()), name)
    }
}

/// The calls in a trace of `strace -f -tt -o`: lines of `NUMBER TIME CALL(…) = RESULT`, where a call that others
/// interrupt is `CALL(… <unfinished ...>` and, later, `<... CALL resumed>…) = RESULT`.
fn parse(trace: &str) -> Vec<Call> {
    let mut unfinished: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, rest)) = text.split_once(' ') else {
            continue;
        };
        let Some((_time, rest)) = rest.trim_start().split_once(' ') else {
            continue;
        };
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (line, begun.to_owned()));
            continue;
        }
        let (begin, whole) = match rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            Some((_, ending)) => {
                let (begin, begun) = unfinished.remove(thread).expect("what is resumed was begun");
                (begin, begun + ending)
            }
            None => (line, rest.to_owned()),
        };
        let Some((name, text)) = whole.split_once('(') else {
            continue;
        };
        let has_failed = text.rsplit(" = ").next().is_some_and(|result| result.starts_with('-'));
        if !has_failed {
            let (name, text) = (name.to_owned(), text.to_owned());
            calls.push(Call {
                begin,
                end: line,
                name,
                text,
            });
        }
    }
    calls
}

fn write(path: PathBuf, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn calls_that_others_interrupt_are_put_together() {
    let trace = "7 10:00:00.1 fsync(3</a>) = 0\n\
                 7 10:00:00.2 fsync(4</b>  <unfinished ...>\n\
                 8 10:00:00.3 unlinkat(5</c>, \"x\", 0) = -1 ENOENT (No such file or directory)\n\
                 7 10:00:00.4 <... fsync resumed>) = 0\n\
                 8 10:00:00.5 +++ exited with 0 +++\n";
    let calls = parse(trace);
    let seen: Vec<_> = calls
        .iter()
        .map(|call| (call.begin, call.end, call.name.as_str()))
        .collect();
    assert_eq!(seen, [(0, 0, "fsync"), (1, 3, "fsync")]);
    assert!(calls[1].text.contains("</b>") && calls[1].text.ends_with("= 0"));
}

#[test]
fn a_large_file_is_deleted_only_after_it_is_durable_under_its_name() {
    for (from, to) in [
        (Scratch::on_disk(), Scratch::in_memory()),
        (Scratch::in_memory(), Scratch::on_disk()),
    ] {
        let (source, target) = (from.dir("source"), to.dir("target"));
        for path in ["large", "new/deep/large too", "there/third"] {
            write(source.join(path), vec![1; LARGE]);
        }
        fs::create_dir(target.join("there")).unwrap();
        let trace = Trace::of_move(&source, &target);
        for path in ["large", "new/deep/large too", "there/third"] {
            trace.assert_copied(path);
            let name = Path::new(path).file_name().unwrap().to_str().unwrap();
            let length = trace.one("ftruncate", &[&format!(".{name}.realize-part>"), &LARGE.to_string()]);
            let sync = format!(".{name}.realize-part>");
            length.assert_before(trace.all("fsync", &[&sync]).last().unwrap());
        }
    }
}

#[test]
fn small_files_are_deleted_only_after_each_is_durable_under_its_name() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, target) = (disk.dir("source"), memory.dir("target"));
    let paths: Vec<_> = (0..60)
        .map(|number| format!("d{}/e{}/f{number}", number % 3, number % 7))
        .collect();
    for path in &paths {
        write(source.join(path), path);
    }
    let trace = Trace::of_move(&source, &target);
    for path in &paths {
        trace.assert_copied(path);
    }
}

#[test]
fn equal_files_are_read_back_from_the_device_before_their_sources_go() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    // The target is where reading back means something.
    let (source, target) = (memory.dir("source"), disk.dir("target"));
    for path in ["small", "below/deep/small too", "large", "below/large too"] {
        let content = vec![5; if path.contains("large") { LARGE } else { 100 }];
        write(source.join(path), &content);
        write(target.join(path), &content);
    }
    let trace = Trace::of_move(&source, &target);
    for path in ["small", "below/deep/small too", "large", "below/large too"] {
        trace.assert_verified(path);
    }
}

#[test]
fn a_renamed_file_is_synced_before_and_both_directories_after() {
    let disk = Scratch::on_disk();
    let (source, target) = (disk.dir("source"), disk.dir("target"));
    for path in ["large", "new/small"] {
        write(source.join(path), vec![1; if path == "large" { LARGE } else { 10 }]);
    }
    let trace = Trace::of_move(&source, &target);
    for path in ["large", "new/small"] {
        let (from, name) = trace.place(&source, path);
        let (to, _) = trace.place(&target, path);
        let content = trace.all("fsync|fdatasync", &[&format!("{}/{name}>", from.trim_end_matches('>'))]);
        let rename = trace.one("renameat2", &[&from, &to, &format!("\"{name}\""), "RENAME_NOREPLACE"]);
        content[0].assert_before(rename);
        let synced_after = |dir: &str| {
            let later = trace
                .all("fsync", &[dir])
                .into_iter()
                .filter(|sync| rename.end < sync.begin);
            later
                .min_by_key(|sync| sync.begin)
                .unwrap_or_else(|| panic!("{dir} is synced after the rename"))
        };
        synced_after(&to).assert_before(synced_after(&from));
        // A name goes into a directory that is durable itself.
        if path == "new/small" {
            let made = trace.one("mkdirat|mkdir", &["\"new\"", &format!("<{}>", target.display())]);
            let parents = trace.all("fsync", &[&format!("<{}>", target.display())]);
            assert!(
                parents
                    .iter()
                    .any(|sync| made.end < sync.begin && sync.end < rename.begin)
            );
        }
    }
}

#[test]
fn with_verify_disk_what_was_written_is_read_back_before_it_has_its_name() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, target) = (memory.dir("source"), disk.dir("target"));
    for path in ["large", "below/small"] {
        write(source.join(path), vec![1; if path == "large" { LARGE } else { 100 }]);
    }
    let trace = Trace::of_move_with(&["--verify=disk"], &source, &target);
    for path in ["large", "below/small"] {
        trace.assert_copied(path);
        let (to, name) = trace.place(&target, path);
        let part = format!(".{name}.realize-part>");
        let sync = *trace.all("fsync", &[&part]).last().unwrap();
        let drop = *trace.all("fadvise64", &[&part, "POSIX_FADV_DONTNEED"]).last().unwrap();
        let named = trace.one("renameat2", &[&to, &format!("\"{name}\"")]);
        let reads = trace.all("pread64", &[&part]);
        sync.assert_before(drop);
        assert!(!reads.is_empty(), "{path} is read back");
        for read in reads {
            drop.assert_before(read);
            read.assert_before(named);
        }
    }
}
