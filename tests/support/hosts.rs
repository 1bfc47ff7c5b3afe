//! Two hosts on this machine: keys made by `realize keygen`, a daemon on a port of its own, and a mover that knows it.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Run, Scratch, command::spawn, realize};

/// Rights to everything.
pub const ALL: &str = r#"["read", "write", "replace", "delete"]"#;

/// How long a daemon may take to begin.
const BEGIN_LIMIT: Duration = Duration::from_secs(20);

/// A host that runs `realized`, and one that runs `realize`.
pub struct Hosts {
    /// Keys and configurations.
    pub files: Scratch,
    daemon: Option<Daemon>,
    port: u16,
}

/// A running daemon.
struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Hosts {
    /// A daemon that serves `dirs`, each a name, a path and the rights of the mover.
    pub fn serving(dirs: &[(&str, &Path, &str)]) -> Self {
        let files = Scratch::on_disk();
        for name in ["mover", "daemon", "stranger"] {
            realize()
                .arg("keygen")
                .arg("--out")
                .arg(files.join(name))
                .run()
                .expect_code(0);
        }
        let mut hosts = Self {
            files,
            daemon: None,
            port: 0,
        };
        hosts.configure(dirs, &hosts.public("mover"));
        hosts.start();
        let address = format!("127.0.0.1:{}", hosts.port);
        hosts.know("nas", &hosts.public("daemon"), &address);
        hosts
    }

    /// The public key of `name`, as keygen prints it.
    pub fn public(&self, name: &str) -> String {
        let key = realize::keys::file::read(&self.files.join(name)).unwrap();
        key.public().to_string()
    }

    /// Writes the daemon's configuration: the directories, and the one peer.
    pub fn configure(&self, dirs: &[(&str, &Path, &str)], peer: &str) {
        let mut text = format!("listen = \"127.0.0.1:{}\"\nkey = \"daemon\"\n", self.port);
        for (name, path, _) in dirs {
            text += &format!("[directories.{name}]\npath = {path:?}\n");
        }
        text += &format!("[peers.mover]\nkey = \"{peer}\"\n[peers.mover.rights]\n");
        for (name, _, rights) in dirs {
            text += &format!("{name} = {rights}\n");
        }
        fs::write(self.files.join("realized.toml"), text).unwrap();
    }

    /// Makes the mover know the host `name`, and no other.
    pub fn know(&self, name: &str, key: &str, address: &str) {
        let text = format!("[hosts.{name:?}]\nkey = \"{key}\"\naddress = \"{address}\"\n");
        fs::write(self.files.join("hosts.toml"), text).unwrap();
    }

    /// The daemon's process number.
    pub fn daemon_id(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon runs").child.id()
    }

    /// The port of the daemon.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the daemon, which keeps its port once it has one.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the daemon with these in its environment, and nothing else.
    pub fn start_with(&mut self, envs: &[(&str, &OsStr)]) {
        assert!(self.daemon.is_none(), "one daemon at a time");
        if self.port != 0 {
            let config = self.files.join("realized.toml");
            let text = fs::read_to_string(&config).unwrap();
            fs::write(
                &config,
                text.replace("127.0.0.1:0\"", &format!("127.0.0.1:{}\"", self.port)),
            )
            .unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_realized"));
        command
            .arg("--config")
            .arg(self.files.join("realized.toml"))
            .env_clear()
            .envs(envs.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let daemon = Daemon { child, log };
        self.port = daemon.port();
        self.daemon = Some(daemon);
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        self.daemon
            .as_ref()
            .map(|daemon| daemon.log.lock().unwrap().clone())
            .unwrap_or_default()
    }

    /// Waits until the daemon has logged `text`.
    #[track_caller]
    pub fn expect_log(&self, text: &str) {
        let begin = Instant::now();
        while !self.log().contains(text) {
            assert!(
                begin.elapsed() < BEGIN_LIMIT,
                "{text:?} is not in the log:\n{}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    /// Tells the daemon to read its configuration anew.
    pub fn hang_up(&self) {
        let daemon = self.daemon.as_ref().expect("a daemon runs");
        kill_process(daemon.pid(), Signal::HUP).unwrap();
    }

    /// Has the daemon read its configuration anew, and waits until it has.
    #[track_caller]
    pub fn reload(&self) {
        let loaded = || self.log().matches("loaded anew").count();
        let (before, begin) = (loaded(), Instant::now());
        self.hang_up();
        while loaded() == before {
            assert!(begin.elapsed() < BEGIN_LIMIT, "not loaded anew:\n{}", self.log());
            std::thread::yield_now();
        }
    }

    /// Sends `signal` to the daemon and waits for its end.
    pub fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        kill_process(daemon.pid(), signal).unwrap();
        daemon.child.wait().unwrap()
    }

    /// A run of `realize` on the other host.
    pub fn realize(&self) -> Run {
        realize()
            .arg("--key")
            .arg(self.files.join("mover"))
            .arg("--hosts")
            .arg(self.files.join("hosts.toml"))
    }

    /// A run of `realize check HOST`.
    pub fn check(&self, host: &str) -> Run {
        realize()
            .arg("check")
            .arg("--key")
            .arg(self.files.join("mover"))
            .arg("--hosts")
            .arg(self.files.join("hosts.toml"))
            .arg(host)
    }

    /// Where the file `name` of the two is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }
}

impl Daemon {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The port that it says it listens at.
    fn port(&self) -> u16 {
        let begin = Instant::now();
        loop {
            let log = self.log.lock().unwrap().clone();
            let said = log.split_once("listening at 127.0.0.1:");
            if let Some((port, _)) = said.and_then(|(_, rest)| rest.split_once(',')) {
                return port.parse().unwrap();
            }
            assert!(begin.elapsed() < BEGIN_LIMIT, "the daemon does not listen:\n{log}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.child.kill().unwrap();
            daemon.child.wait().unwrap();
        }
    }
}
