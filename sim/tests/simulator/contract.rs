//! The contract suite of `realize::fs` on every implementation.

mod sim {
    use std::sync::Arc;

    use realize_sim::{
        contract::Bench,
        fs::{Machine, SimFs},
    };

    fn bench() -> Bench<SimFs> {
        let disk = Machine::new(1).disk(1);
        disk.mkdir_all("root").unwrap();
        let fs = disk.fs();
        let fifo = move |name: &realize::model::Name| disk.fifo([b"root/", name.as_bytes()].concat()).unwrap();
        Bench {
            fs,
            path: "/root".into(),
            fifo: Box::new(fifo),
            keep: Box::new(Arc::new(())),
        }
    }

    realize_sim::contract_suite!(bench());
}

/// The real file systems: `/dev/shm`, and whatever holds the build's directory (ext4 where this was written).
mod os {
    use std::path::Path;

    use realize::fs::os::OsFs;
    use realize_sim::contract::Bench;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    fn bench(place: impl AsRef<Path>) -> Bench<OsFs> {
        let place = tempfile::tempdir_in(place).unwrap();
        let path = place.path().to_owned();
        let above = path.clone();
        let fifo = move |name: &realize::model::Name| {
            let path = above.join(str::from_utf8(name.as_bytes()).unwrap());
            mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        };
        Bench {
            fs: OsFs::new(),
            path,
            fifo: Box::new(fifo),
            keep: Box::new(place),
        }
    }

    mod disk {
        realize_sim::contract_suite!(super::bench(env!("CARGO_TARGET_TMPDIR")));
    }

    mod tmpfs {
        /// Or what is named there: a file system that shares blocks, to see that.
        fn place() -> std::ffi::OsString {
            std::env::var_os("REALIZE_CONTRACT_DIR").unwrap_or("/dev/shm".into())
        }

        realize_sim::contract_suite!(super::bench(place()));
    }
}
