//! The command `realize`: moves files and never loses one.

mod args;
mod ends;
mod ui;

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use realize::{
    algo::{MoveError, MoveOptions, MoveReport, Source, Target, move_files},
    clock::TokioClock,
    filter::Filter,
    fs::os::{OsFs, raise_open_files},
    limits::Limits,
    server::{RealizeServer, Roots},
    service::{DirId, RealizeService, RealizeServiceClient, RunId},
};

use crate::{
    args::Args,
    ends::{SourceRoot, TargetRoot, shown},
    ui::Ui,
};

/// Threads that may block in the file system at once: so many syncs run side by side.
const BLOCKING_THREADS: usize = 32;

/// Open files with the default limits: for each small file under way its source, its partial and its directory.
const OPEN_FILES_WANTED: u64 = 4096;

fn main() -> ExitCode {
    let (args, rules) = Args::read();
    match run(args, &rules) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("realize: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Args, rules: &[realize::filter::Rule]) -> Result<ExitCode> {
    let filter = Filter::new(rules)?;
    let (sources, target) = ends::resolve(&args.sources, &args.target)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start")?;
    let code = runtime.block_on(move_locally(args, filter, sources, target));
    // Nothing is waited for: what a job leaves half done is gone on with by the next run.
    runtime.shutdown_background();
    code
}

async fn move_locally(args: Args, filter: Filter, sources: Vec<SourceRoot>, target: TargetRoot) -> Result<ExitCode> {
    let clock = TokioClock::new();
    let limits = limits();
    let mut roots = Roots::new(OsFs::new(), clock.clone(), limits.clone(), random()?);
    if target.is_missing && !args.dry_run {
        ends::make_target(&target.path)?;
    }
    if !args.dry_run {
        ends::sync_name_of(&target.path)?;
    }
    let target_dir = if target.is_missing && args.dry_run {
        None
    } else {
        let id = DirId("target".into());
        let opened = roots.add(id.clone(), &target.path, args.accept_unsynced).await;
        opened.with_context(|| format!("cannot open {}", shown(&target.path)))?;
        Some(id)
    };
    let mut source_dirs = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let id = DirId(format!("source {index}"));
        let opened = roots.add(id.clone(), &source.path, args.accept_unsynced).await;
        opened.with_context(|| format!("cannot open {}", shown(&source.path)))?;
        source_dirs.push(id);
    }
    let service = RealizeServiceClient::from(RealizeServer::new(Arc::new(roots)).serve());
    let sources = sources.into_iter().zip(source_dirs);
    let sources: Vec<_> = sources
        .map(|(root, dir)| Source {
            service: service.clone(),
            dir,
            files: root.files,
        })
        .collect();
    let target = Target {
        service,
        dir: target_dir,
    };
    let options = MoveOptions {
        filter,
        keep_dirs: args.keep_dirs,
        dry_run: args.dry_run,
        copy: args.copy,
        strict: args.strict,
        limits,
    };
    let ui = Ui::new(clock, args.verbose, args.quiet, args.copy);
    let moved = move_files(&sources, &target, RunId(random()?), &options, &|event| ui.show(event)).await;
    Ok(match moved {
        Ok(report) => {
            ui.finish(&report);
            exit_code(&report)
        }
        Err(error) => {
            ui.say(&explained(&error));
            match error {
                MoveError::Locked(_) => ExitCode::from(13),
                MoveError::Nested(_) | MoveError::NestedSources => ExitCode::from(2),
                MoveError::Side(..) => ExitCode::from(1),
            }
        }
    })
}

fn exit_code(report: &MoveReport) -> ExitCode {
    if report.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn explained(error: &MoveError) -> String {
    match error {
        MoveError::Locked(_) => format!("{error}; wait for it to end, or stop it"),
        MoveError::Nested(_) => format!("{error}: nothing was moved from there; name directories that are apart"),
        _ => error.to_string(),
    }
}

/// The default limits, smaller where few files may be open.
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
