//! Trees to move: ordinary ones, and one with everything that makes a mover stumble.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

/// Seconds since 1970 of the times that [`odd_times`] gives, with nanoseconds: 1938, the last moment before 1970, just
/// after it, and 2128.
const ODD_TIMES: [(i64, i64); 4] = [
    (-1_000_000_000, 1),
    (-1, 999_999_999),
    (0, 1),
    (5_000_000_000, 123_456_789),
];

/// How many files are in the directory `many` of an [`odd_tree`].
const MANY: usize = 3000;

/// Makes in `dir`, which is empty, everything that follows here, each in a directory of its own: `names`, `links`,
/// `kinds`, `sparse`, `deep`, `many`, `modes` and `times`. Nothing in it is reserved by realize. The FIFO and the
/// socket in `kinds` are what no mover takes; the file `modes/0000` and the directories `modes/read-only` are what one
/// without privileges may be unable to.
pub fn odd_tree(dir: &Path) {
    let new = |name: &str| {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    odd_names(&new("names"));
    odd_links(&new("links"));
    odd_kinds(&new("kinds"));
    sparse_files(&new("sparse"));
    deep_directories(&new("deep"));
    many_files(&new("many"), MANY);
    odd_modes(&new("modes"));
    odd_times(&new("times"));
    write(&dir.join("empty file"), "");
    fs::create_dir(dir.join("empty directory")).unwrap();
}

/// Names that are not UTF-8, with control bytes, of 255 bytes, alike but for case or for how an accent is written,
/// that look like options, patterns, paths of another system or a host.
pub fn odd_names(dir: &Path) {
    let longest = [b'x'; 255];
    let names: [&[u8]; 27] = [
        b"\xff\xfe not UTF-8",
        b"cut off \xe2\x82",
        b"new\nline",
        b"\n",
        b"carriage\rreturn",
        b"tab\tbell\x07",
        b"escape \x1b[31m",
        b"\x01",
        b"\x7f",
        &longest,
        b"Case",
        b"case",
        b"CASE",
        "caf\u{e9}".as_bytes(),
        "cafe\u{301}".as_bytes(),
        "right to left \u{202e}".as_bytes(),
        b" ",
        b"trailing space ",
        b"trailing dot.",
        b"...",
        b".hidden",
        b"-rf",
        b"--",
        b"*?[a]",
        b"back\\slash",
        b"\"quoted\" 'name' $HOME `id`",
        b"host::dir",
    ];
    for name in names {
        write(&dir.join(OsStr::from_bytes(name)), name);
    }
    let inside = dir.join(OsStr::from_bytes(b"directory \xff\n"));
    fs::create_dir(&inside).unwrap();
    write(&inside.join(OsStr::from_bytes(&[b'y'; 255])), "text");
}

/// Symbolic links of all sorts, and hard links in one directory and across two.
pub fn odd_links(dir: &Path) {
    fs::create_dir_all(dir.join("hard/below")).unwrap();
    write(&dir.join("hard/first"), "one file, three names");
    fs::hard_link(dir.join("hard/first"), dir.join("hard/second")).unwrap();
    fs::hard_link(dir.join("hard/first"), dir.join("hard/below/third")).unwrap();
    let longest = [b'l'; 4095];
    let links: [(&str, &[u8]); 12] = [
        ("to a file", b"hard/first"),
        ("to a directory", b"hard"),
        ("to the parent", b".."),
        ("dangling", b"there is/nothing"),
        ("absolute", b"/etc/passwd"),
        ("absolute directory", b"/"),
        ("itself", b"itself"),
        ("round 1", b"round 2"),
        ("round 2", b"round 1"),
        ("not UTF-8", b"\xff\n"),
        ("with slashes", b"hard//below/./"),
        ("longest", &longest),
    ];
    for (name, text) in links {
        symlink(OsStr::from_bytes(text), dir.join(name)).unwrap();
    }
    symlink("itself", dir.join("old link")).unwrap();
    set_mtime(&dir.join("old link"), ODD_TIMES[0]);
}

/// A FIFO and a socket.
pub fn odd_kinds(dir: &Path) {
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o644), 0).unwrap();
    }
}

/// Files with holes: at the start, in the middle, at the end, and nothing but.
pub fn sparse_files(dir: &Path) {
    const MIB: u64 = 1 << 20;
    let files: [(&str, u64, &[u64]); 4] = [
        ("only a hole", 8 * MIB, &[]),
        ("data at the end", 8 * MIB, &[8 * MIB - 4096]),
        ("data in the middle", 16 * MIB, &[5 * MIB + 1]),
        ("data at the start", 8 * MIB + 1, &[0, 2 * MIB]),
    ];
    for (name, len, offsets) in files {
        let file = File::create(dir.join(name)).unwrap();
        for offset in offsets {
            file.write_all_at(&[0xa5; 4096], *offset).unwrap();
        }
        file.set_len(len).unwrap();
    }
}

/// Directories in directories: a hundred with short names, eight with the longest.
pub fn deep_directories(dir: &Path) {
    for (name, depth) in [("d".to_owned(), 100), ("n".repeat(255), 8)] {
        let mut path = dir.to_owned();
        path.extend(std::iter::repeat_n(&name, depth));
        fs::create_dir_all(&path).unwrap();
        write(&path.join("at the bottom"), "text");
    }
}

/// `count` files of 0 to 99 bytes.
pub fn many_files(dir: &Path, count: usize) {
    for number in 0..count {
        write(&dir.join(format!("{number:06}")), vec![number as u8; number % 100]);
    }
}

/// Files and directories with every sort of mode.
pub fn odd_modes(dir: &Path) {
    for mode in [
        0o000, 0o001, 0o200, 0o400, 0o444, 0o555, 0o600, 0o644, 0o777, 0o1644, 0o2755, 0o4755, 0o6711,
    ] {
        let path = dir.join(format!("{mode:04o}"));
        write(&path, format!("mode {mode:04o}"));
        set_mode(&path, mode);
    }
    let read_only = dir.join("read-only");
    fs::create_dir_all(read_only.join("empty")).unwrap();
    fs::create_dir_all(read_only.join("full")).unwrap();
    write(&read_only.join("file"), "in a read-only directory");
    write(&read_only.join("full/file"), "in one below");
    fs::create_dir_all(dir.join("shared")).unwrap();
    set_mode(&dir.join("shared"), 0o1777);
    for path in ["full", "empty", ""] {
        set_mode(&read_only.join(path), 0o555);
    }
}

/// Files, directories and links with times before 1970 and after 2100.
pub fn odd_times(dir: &Path) {
    for (number, time) in ODD_TIMES.into_iter().enumerate() {
        let below = dir.join(format!("directory {number}"));
        fs::create_dir(&below).unwrap();
        for path in [below.join("file"), dir.join(format!("file {number}"))] {
            write(&path, format!("{time:?}"));
            set_mtime(&path, time);
        }
        symlink("file", below.join("link")).unwrap();
        set_mtime(&below.join("link"), time);
        fs::create_dir(below.join("empty")).unwrap();
        set_mtime(&below.join("empty"), time);
        // Last: each new entry would change it.
        set_mtime(&below, time);
    }
}

/// `count` files of up to `max_bytes` in a few directories, all the same for the same `seed`: names, content, modes
/// and mtimes (in 2001 to 2017). Gives back how many bytes they hold.
pub fn plain_tree(dir: &Path, count: usize, max_bytes: usize, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut total = 0;
    let mut dirs: Vec<PathBuf> = Vec::new();
    for number in 0..count {
        // Every tenth opens a new directory, somewhere below one there is.
        if number % 10 == 0 {
            let parent = match dirs.len() as u64 {
                0 => dir.to_owned(),
                known => dirs[random.below(known) as usize].clone(),
            };
            let new = parent.join(format!("d{number}"));
            fs::create_dir(&new).unwrap();
            dirs.push(new);
        }
        let path = dirs[random.below(dirs.len() as u64) as usize].join(format!("f{number}"));
        let bytes = random.below(max_bytes as u64 + 1);
        write(&path, random.bytes(bytes as usize));
        set_mode(&path, [0o600, 0o640, 0o644, 0o755][random.below(4) as usize]);
        set_mtime(&path, random.time());
        total += bytes;
    }
    // Whatever was made in them since has changed their times.
    for dir in dirs {
        set_mtime(&dir, random.time());
    }
    total
}

/// Bytes that the file takes on its file system, which are fewer than its size when it has holes.
pub fn allocated_bytes(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().blocks() * 512
}

/// Sets the mtime of `path`, of a link itself, and makes sure that the file system keeps it.
pub fn set_mtime(path: &Path, (secs, nanos): (i64, i64)) {
    let time = Timespec {
        tv_sec: secs,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let kept = fs::symlink_metadata(path).unwrap();
    assert_eq!((kept.mtime(), kept.mtime_nsec()), (secs, nanos), "{path:?}");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{path:?}: {error}"));
}

/// Splitmix64: small, fast, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`. The slight preference for small ones does not matter here.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    fn time(&mut self) -> (i64, i64) {
        let (secs, nanos) = (self.below(500_000_000), self.below(1_000_000_000));
        (1_000_000_000 + secs as i64, nanos as i64)
    }
}
