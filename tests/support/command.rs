//! Runs a program: its output is kept, its time is limited, and it can do without privileges or see mounts of its own.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    io::Read,
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use tempfile::TempDir;

use super::NOBODY;

/// How long a program may run when the test says nothing else.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// How often a running program is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The built `realize`.
pub fn realize() -> Run {
    Run::program(env!("CARGO_BIN_EXE_realize"))
}

/// The built `realized`.
pub fn realized() -> Run {
    Run::program(env!("CARGO_BIN_EXE_realized"))
}

/// Whether this process is root.
pub fn run_as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether [`Run::inside`] works here. Says so where it does not: the caller leaves its test out.
pub fn name_spaces_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        let allowed = Run::program("unshare").args(["-Urm", "true"]).run().status.success();
        if !allowed {
            eprintln!("not tested: this host forbids user name spaces");
        }
        allowed
    })
}

/// Whether an image of XFS can be mounted here, as nobody but root may. Says so where it can't: the caller leaves its test out.
pub fn disk_images_allowed() -> bool {
    let scratch = super::Scratch::in_memory();
    let script = r#"truncate -s 300M "$1/image"; mkfs.xfs -q "$1/image"; mount -o loop "$1/image" "$1""#;
    let mounted = Run::program("unshare")
        .args(["-m", "sh", "-ec", script, "sh"])
        .arg(&*scratch)
        .run();
    if !mounted.status.success() {
        eprintln!("not tested: no disk image can be mounted here: {mounted}");
    }
    mounted.status.success()
}

/// Starts a program. One at a time: until it is another program a child has open what other tests are writing just then, and who was started in that moment would
/// find it in use. It ignores no signal, whatever these tests were told to: shells have what they start in the background ignore SIGINT.
pub fn spawn(command: &mut Command) -> Child {
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM] {
        // SAFETY: nobody handles these here. Children have it from this process: to set it in them takes a fork instead of a vfork.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A program to run, with an environment that holds nothing but `PATH` and what the test adds.
pub struct Run {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    current_dir: Option<PathBuf>,
    time_limit: Duration,
    unprivileged: bool,
    script: Option<String>,
}

impl Run {
    /// The program at `path`, or of that name in `PATH`.
    pub fn program(path: impl Into<PathBuf>) -> Self {
        Self {
            program: path.into(),
            args: Vec::new(),
            envs: Vec::new(),
            current_dir: None,
            time_limit: TIME_LIMIT,
            unprivileged: false,
            script: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Where it runs.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// How long it may run, instead of a minute.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Runs it as [`NOBODY`] when this process is root, as this user otherwise.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// Runs `script` by `sh -e` before the program, as the root of a user and mount name space of its own: mounts
    /// made there are seen by this program only. The program has the same process number as the shell.
    pub fn inside(mut self, script: impl Into<String>) -> Self {
        self.script = Some(script.into());
        self
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let program = if self.unprivileged && run_as_root() {
            for_everyone(&self.program)
        } else {
            self.program.clone()
        };
        let mut command = match &self.script {
            Some(script) => {
                let mut command = Command::new("unshare");
                let script = format!("{script}\nexec \"$@\"");
                command.args(["-Urm", "sh", "-ec", &script, "sh"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUST_BACKTRACE", "1")
            .envs(self.envs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that all of it can be killed.
            .process_group(0);
        if let Some(dir) = &self.current_dir {
            command.current_dir(dir);
        }
        if self.unprivileged && run_as_root() {
            // The further groups go with the user.
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut child = spawn(&mut command);
        Running {
            what: format!("{command:?}"),
            start: Instant::now(),
            deadline: Instant::now() + self.time_limit,
            stdout: Some(collect(child.stdout.take().expect("piped above"))),
            stderr: Some(collect(child.stderr.take().expect("piped above"))),
            child,
            reaped: false,
        }
    }

    /// Runs it to its end. Panics with what it printed when that takes too long.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.start().wait()
    }
}

/// A program that runs. Dropped, it is killed.
pub struct Running {
    what: String,
    start: Instant,
    deadline: Instant,
    child: Child,
    /// Whether its end was taken, and its number with it.
    reaped: bool,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        // Its end is looked at, not taken: until it is, the number is nobody else's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid()), options).unwrap().is_none()
    }

    /// Sends it a signal; nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end. Panics with what it printed when that takes too long.
    #[track_caller]
    pub fn wait(self) -> Outcome {
        self.wait_or_kill()
            .unwrap_or_else(|TimedOut(outcome)| panic!("took too long\n{outcome}"))
    }

    /// Waits for its end; kills it, and all it has started, when its time is over.
    pub fn wait_or_kill(mut self) -> Result<Outcome, TimedOut> {
        let in_time = loop {
            if !self.is_running() {
                break true;
            }
            if Instant::now() > self.deadline {
                break false;
            }
            thread::sleep(LOOK_EVERY);
        };
        let outcome = Outcome {
            what: self.what.clone(),
            status: self.kill(),
            stdout: self.stdout.take().expect("taken once").join().unwrap(),
            stderr: self.stderr.take().expect("taken once").join().unwrap(),
            took: self.start.elapsed(),
        };
        if in_time { Ok(outcome) } else { Err(TimedOut(outcome)) }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Kills what is left of it and gives its end back. Nothing happens the second time.
    fn kill(&mut self) -> ExitStatus {
        if !self.reaped {
            // Whoever is left in the group would keep the pipes open.
            kill_process_group(self.pid(), Signal::KILL).unwrap();
        }
        self.reaped = true;
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a program ended.
pub struct Outcome {
    what: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

/// It was killed because its time was over; what it did until then.
#[derive(Debug)]
pub struct TimedOut(pub Outcome);

impl Outcome {
    /// Panics with what it printed unless it exited with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.status.code() == Some(code), "exit code {code} expected\n{self}");
        self
    }

    /// Panics with what it printed unless `signal` ended it.
    #[track_caller]
    pub fn expect_signal(self, signal: Signal) -> Self {
        let expected = Some(signal.as_raw());
        assert!(self.status.signal() == expected, "{signal:?} expected\n{self}");
        self
    }

    /// What it wrote to its standard output, which must be UTF-8.
    #[track_caller]
    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("the output is UTF-8")
    }

    /// What it wrote to its standard error, which must be UTF-8.
    #[track_caller]
    pub fn stderr(&self) -> &str {
        std::str::from_utf8(&self.stderr).expect("the output is UTF-8")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ended with {} after {:?}", self.what, self.status, self.took)?;
        writeln!(f, "--- stdout\n{}", String::from_utf8_lossy(&self.stdout))?;
        write!(f, "--- stderr\n{}", String::from_utf8_lossy(&self.stderr))
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// The program, or a copy of it where the user without privileges can't reach it.
fn for_everyone(program: &Path) -> PathBuf {
    let is_open = |path: &Path| {
        let metadata = fs::metadata(path);
        metadata.is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    };
    if !program.is_absolute() || program.ancestors().all(is_open) {
        return program.to_owned();
    }
    let name = program.file_name().expect("a program has a name");
    let copy = copies().path().join(name);
    if !copy.exists() {
        // Under a name of its own first: another test may want it at this moment.
        let unfinished = tempfile::NamedTempFile::new_in(copies().path()).unwrap();
        fs::copy(program, unfinished.path()).unwrap();
        unfinished.into_temp_path().persist(&copy).unwrap();
    }
    copy
}

fn copies() -> &'static TempDir {
    static COPIES: OnceLock<TempDir> = OnceLock::new();
    COPIES.get_or_init(|| {
        let dir = TempDir::with_prefix("realize-test-").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        dir
    })
}
