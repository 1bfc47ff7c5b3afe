//! The command `realize`: moves files and never loses one.

/// A line on standard output. That nobody reads any more is no reason to fail.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stdout(), $($text)*).ok();
    }};
}

mod args;
mod check;
mod ends;
mod remote;
mod resolve;
mod ui;

use std::{cell::Cell, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use realize::{
    algo::{
        Begun, Halt, MoveError, MoveOptions, MoveReport, Next, Stop, Tries, TryLimits, is_unanswered, move_files,
        unanswered,
    },
    clock::{Clock, TokioClock, timeout},
    deadline::Deadline,
    filter::Filter,
    fs::os::raise_open_files,
    limits::Limits,
    memory::tune_allocator,
    service::{RunId, ServiceError},
    signals::{self, Ending},
    throttle::Rate,
    wire::LinkId,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{
    args::{Args, Command},
    remote::NotAuthenticated,
    resolve::Ends,
    ui::Ui,
};

/// Threads that may block in the file system at once: so many syncs run side by side.
const BLOCKING_THREADS: usize = 32;

/// Open files with the default limits: for each small file under way its source, its partial and its directory.
const OPEN_FILES_WANTED: u64 = 4096;

/// How long what was brought over whole may take to get its final name once the time is over.
const GRACE: Duration = Duration::from_secs(10);

/// For closing connections and removing tokens once a signal has come.
const LEAVE: Duration = Duration::from_millis(500);

/// The exit code when the time was over.
const TIME_OVER: u8 = 11;

fn main() -> ExitCode {
    // The time that was given counts from here.
    let clock = TokioClock::new();
    tune_allocator();
    let (args, rules) = Args::read();
    match run(args, &rules, clock) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("realize: {error:#}");
            let is_about_keys = error.chain().any(|cause| cause.is::<NotAuthenticated>());
            ExitCode::from(if is_about_keys { 12 } else { 2 })
        }
    }
}

fn run(args: Args, rules: &[realize::filter::Rule], clock: TokioClock) -> Result<ExitCode> {
    let filter = Filter::new(rules)?;
    if let Some(Command::Keygen { out }) = &args.command {
        remote::keygen(out.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    let limits = limits();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start")?;
    let code = match &args.command {
        Some(Command::Check { host, known }) => runtime.block_on(check::check(known, host)),
        _ => runtime.block_on(move_in_time(&args, filter, limits, &clock)),
    };
    // Nothing is waited for: what a job leaves half done is gone on with by the next run.
    runtime.shutdown_background();
    code
}

/// Moves until everything is moved, the time is over, or a signal comes.
async fn move_in_time(args: &Args, filter: Filter, limits: Limits, clock: &TokioClock) -> Result<ExitCode> {
    let halt = Halt::default();
    let options = MoveOptions {
        filter,
        keep_dirs: args.keep_dirs,
        dry_run: args.dry_run,
        copy: args.copy,
        strict: args.strict,
        verify: args.verify.into(),
        begun: Begun::default(),
        halt: halt.clone(),
        limits,
    };
    let deadline = Deadline::new(clock, args.max_duration, args.stop_at);
    let signal = signals::first_of(&[SIGTERM, SIGINT, SIGHUP], Ending::exit_code).context("cannot take signals")?;
    let ui = Ui::new(clock.clone(), args.verbose, args.quiet, args.copy);
    if let Some(limits) = shown_limits(args) {
        ui.say(&limits);
    }
    let mut ends = None;
    let is_moving = Cell::new(false);
    let (why, code) = {
        let moving = move_between(&mut ends, args, clock, &options, &ui, &is_moving);
        let over = time_over(&deadline, clock, &halt, &is_moving);
        tokio::select! {
            biased;
            ended = moving => return ended,
            signal = signal => (format!("ended by {}", signal.name()), signal.exit_code()),
            () = over => ("the time is over".to_owned(), TIME_OVER),
        }
    };
    if let Some(ends) = &mut ends {
        // Who is not told in this time sees the connection end.
        let _left = timeout(clock, LEAVE, ends.leave()).await;
        if ui.files() == 0 {
            ends.unmake_target();
        }
    }
    ui.cut_short(&why);
    Ok(ExitCode::from(code))
}

/// Ends when the time is over, and what may be brought to its end has had time for it.
async fn time_over(deadline: &Deadline, clock: &TokioClock, halt: &Halt, is_moving: &Cell<bool>) {
    deadline.comes(clock, deadline.last_part(clock)).await;
    halt.begin_nothing();
    deadline.comes(clock, Duration::ZERO).await;
    halt.end();
    if is_moving.get() {
        clock.sleep(GRACE).await;
    }
}

/// Moves until everything is moved, or it can't be gone on.
async fn move_between<'a>(
    ends: &mut Option<Ends<'a>>,
    args: &'a Args,
    clock: &'a TokioClock,
    options: &MoveOptions,
    ui: &'a Ui<TokioClock>,
    is_moving: &Cell<bool>,
) -> Result<ExitCode> {
    let run = RunId(random()?);
    let mut limits = TryLimits::default();
    if args.retry_for.0.is_zero() {
        (limits.without_progress, limits.without_a_file) = (0, 0);
    }
    let mut tries = Tries::new(limits);
    let mut link = LinkId {
        run,
        attempt: 0,
        number: 0,
    };
    let ended = loop {
        // Each try has links of its own: what those of an earlier one have open, and answers meant for them, are nothing to it.
        link.attempt += 1;
        let Tried {
            moved,
            has_links,
            is_held_elsewhere,
            advice,
        } = match connect_and_move(ends, args, clock, link, options, ui, is_moving).await {
            Err(error) => {
                let is_about_keys = error.chain().any(|cause| cause.is::<NotAuthenticated>());
                let is_given_up = ends.as_ref().is_some_and(|ends| ends.are_given_up());
                if let Next::Again(pause) = tries.not_connected(!is_about_keys && !is_given_up) {
                    ui.say(&format!("{error:#}; trying again in {} s", pause.as_secs()));
                    clock.sleep(pause).await;
                    continue;
                }
                if tries.moved().did_something() {
                    ui.say(&format!("{error:#}"));
                    ui.finish(tries.moved());
                    return Ok(ExitCode::from(if is_about_keys { 12 } else { 1 }));
                }
                if let Some(ends) = ends {
                    ends.unmake_target();
                }
                return Err(error);
            }
            Ok(tried) => tried,
        };
        let is_given_up = ends.as_ref().is_some_and(|ends| ends.are_given_up());
        let next = match is_held_elsewhere {
            true => tries.held(clock.now()),
            false => tries.ended(&moved, has_links && !is_given_up),
        };
        let pause = match next {
            Next::Over => break moved.map(drop).map_err(|error| (error, advice)),
            Next::WaitsForSource(pause) => {
                let wait = TryLimits::default().held.as_secs();
                ui.say(&format!(
                    "the source is in use; waiting up to {wait} s, in case that is a run which has just ended"
                ));
                pause
            }
            Next::Again(pause) => {
                if !is_held_elsewhere {
                    let why = unanswered(&moved).map_or_else(String::new, |why| format!(" ({why})"));
                    ui.say(&format!(
                        "the other side was lost{why}; beginning again with what is left"
                    ));
                    ui.begin_again(tries.moved());
                }
                pause
            }
        };
        clock.sleep(pause).await;
    };
    Ok(match ended {
        Ok(()) => {
            ui.finish(tries.moved());
            exit_code(tries.moved())
        }
        Err((error, advice)) => {
            ui.say(&advice.unwrap_or_else(|| error.to_string()));
            let moved_some = tries.moved().did_something();
            if moved_some {
                ui.finish(tries.moved());
            } else if let Some(ends) = ends {
                ends.unmake_target();
            }
            match error {
                MoveError::Locked(..) => ExitCode::from(13),
                // What was named on the command line can't be.
                MoveError::Nested(..)
                | MoveError::NestedSources
                | MoveError::Side(_, ServiceError::NotFound | ServiceError::Denied(_) | ServiceError::Replaced)
                    if !moved_some =>
                {
                    ExitCode::from(2)
                }
                _ => ExitCode::from(1),
            }
        }
    })
}

/// One move, when there were ends to it.
struct Tried {
    moved: Result<MoveReport, MoveError>,
    has_links: bool,
    /// Whether somebody else has a source, on another host.
    is_held_elsewhere: bool,
    /// What to say where it did not begin.
    advice: Option<String>,
}

/// One move between the ends that the command line names, which are found out at first.
async fn connect_and_move<'a>(
    ends: &mut Option<Ends<'a>>,
    args: &'a Args,
    clock: &'a TokioClock,
    first_link: LinkId,
    options: &MoveOptions,
    ui: &'a Ui<TokioClock>,
    is_moving: &Cell<bool>,
) -> Result<Tried> {
    let ends = match ends {
        Some(ends) => {
            ends.connect_again(first_link).await?;
            ends
        }
        none => none.insert(Ends::open(args, clock, &options.limits, first_link, ui).await?),
    };
    is_moving.set(true);
    let moved = move_files(&ends.sources, &ends.target, first_link.run, options, &|event| {
        ui.show(event)
    })
    .await;
    // Who is not let in is told by calls that fail.
    let entered = if is_unanswered(&moved) {
        ends.enter().await
    } else {
        Ok(())
    };
    let advice = moved.as_ref().err().map(|error| ends.explain(error));
    let is_held_elsewhere = matches!(&moved, Err(MoveError::Locked(source, _)) if ends.is_remote(*source));
    ends.hang_up().await;
    is_moving.set(false);
    entered?;
    Ok(Tried {
        moved,
        has_links: ends.has_links(),
        is_held_elsewhere,
        advice,
    })
}

/// What was understood of the limits.
fn shown_limits(args: &Args) -> Option<String> {
    let said = |what: &str, rate: Option<Rate>| Some(format!("{what} at most {}", rate?));
    let said = [said("sending", args.up()), said("receiving", args.down())];
    let said: Vec<_> = said.into_iter().flatten().collect();
    (!said.is_empty() && !args.quiet).then(|| said.join(", "))
}

fn exit_code(report: &MoveReport) -> ExitCode {
    match report.stopped {
        Some(Stop::TimeOver) => ExitCode::from(TIME_OVER),
        _ if report.is_complete() => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

/// The default limits, smaller where few files may be open. Before there are threads: see [`raise_open_files`].
fn limits() -> Limits {
    let mut limits = Limits::default();
    if raise_open_files() < OPEN_FILES_WANTED {
        limits.batch_files = 32;
    }
    limits
}

/// Sixteen bytes nobody can foresee.
fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let read = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    anyhow::ensure!(
        read.context("cannot get random bytes")? == bytes.len(),
        "too few random bytes"
    );
    Ok(bytes)
}
