//! `realize check`: what is between this host and a directory on another.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::ExitCode};

use anyhow::Result;
use realize::{
    algo::Why,
    client::{Link, LinkLimits},
    clock::TokioClock,
    location::Location,
    model::{Kind, Line},
    service::{DirId, Hello, RealizeServiceClient, Rights, Role, RunId, SERVICE_VERSION, ServiceError, context},
    wire::LinkId,
};

use crate::{
    args::Known,
    random,
    remote::{HostName, Identity, no_such_directory},
    resolve::answer,
    ui::way_out,
};

/// Goes from the name to the rights, and stops where something is in the way.
pub async fn check(known: &Known, text: &OsStr) -> Result<ExitCode> {
    let (host, dir) = parse(text)?;
    let identity = Identity::load(known.key.as_deref(), known.hosts.as_deref())?;
    let clock = TokioClock::new();
    let run = RunId(random()?);
    let id = LinkId {
        run,
        attempt: 0,
        number: 0,
    };
    let connected = async {
        let (link, let_in) = identity
            .link(&host, None, LinkLimits::default(), &clock, id, |_| {})
            .await?;
        let_in.wait().await?;
        Ok(link)
    };
    let link = connected.await.map_err(|error| identity.explain(&host, error))?;
    say!("{}: reached; both hosts have proven who they are", host.host);
    let checked = check_rights(&link, &identity, &host, run, dir).await;
    link.close(&clock).await;
    checked
}

fn parse(text: &OsStr) -> Result<(HostName, Option<DirId>)> {
    match Location::parse(text) {
        Ok(Location::Remote { host, port, dir, below }) => {
            Ok((HostName { host, port }, Some(DirId { name: dir, below })))
        }
        Err(error) if text.as_bytes().windows(2).any(|pair| pair == b"::") && !text.as_bytes().starts_with(b"[") => {
            Err(error.into())
        }
        _ => {
            let (host, port) = Location::parse_host(text)?;
            Ok((HostName { host, port }, None))
        }
    }
}

async fn check_rights(
    link: &Link,
    identity: &Identity,
    host: &HostName,
    run: RunId,
    dir: Option<DirId>,
) -> Result<ExitCode> {
    let client = RealizeServiceClient::from(link.clone());
    let hello = answer(host, client.hello(context(), SERVICE_VERSION, run).await)?;
    for (name, rights) in &hello.rights {
        say!("{}::{}: {rights}", host.host, Line(name));
    }
    let problem = match dir {
        None if hello.rights.is_empty() => {
            Some(identity.no_right(host, "DIRECTORY", "no directory may be used", Rights::ALL))
        }
        None => None,
        Some(dir) => in_the_way(&client, identity, host, &hello, dir).await?,
    };
    Ok(match problem {
        None => ExitCode::SUCCESS,
        Some(problem) => {
            say!("{problem}");
            ExitCode::from(1)
        }
    })
}

/// What keeps `dir` from being used.
async fn in_the_way(
    client: &RealizeServiceClient<Link>,
    identity: &Identity,
    host: &HostName,
    hello: &Hello,
    dir: DirId,
) -> Result<Option<String>> {
    let paths = [Some(dir.below.clone()), dir.below.parent()].into_iter().flatten();
    let paths = paths.filter(|path| !path.is_root()).collect();
    let found = client.stat(context(), DirId::new(&dir.name), paths, false).await;
    let found = match found {
        Ok(Err(ServiceError::NotFound)) => return Ok(Some(no_such_directory(host, &dir.name))),
        Ok(Err(ServiceError::Denied(_))) => {
            return Ok(Some(identity.no_right(
                host,
                &dir.name,
                "this host has no right to it",
                Rights::ALL,
            )));
        }
        Ok(Err(error @ ServiceError::Replaced)) => {
            return Ok(Some(format!("{}::{}: {error}", host.host, Line(&dir.name))));
        }
        found => answer(host, found)?,
    };
    let mut is_dir = true;
    if !dir.below.is_root() {
        let mut kinds = Vec::new();
        for found in found {
            kinds.push(found?.map(|entry| entry.kind));
        }
        let at = format!("{}::{}/{}", host.host, Line(&dir.name), dir.below);
        let what = match kinds.first().copied().flatten() {
            None if kinds.get(1).is_some_and(|above| *above != Some(Kind::Dir)) => {
                return Ok(Some(format!(
                    "{at}: a move to there makes the last component only, and the one above it is no directory; make that one on {} \
                     with mkdir -p",
                    host.host
                )));
            }
            None => "there is nothing yet; a move to there makes its last component",
            Some(Kind::Dir) => "a directory",
            Some(Kind::File) => "a file",
            Some(Kind::Symlink) => "a symbolic link, which is not followed",
            Some(Kind::Special) => "neither file nor directory, and never moved",
        };
        is_dir = kinds.first() == Some(&Some(Kind::Dir));
        say!("{at}: {what}");
    }
    let rights = hello.rights.iter().find(|(known, _)| *known == dir.name);
    let rights = rights.map(|(_, rights)| *rights).unwrap_or_default();
    if rights.write && is_dir {
        // As a move would take it, with the mark of a run in it.
        let claimed = client.claim(context(), dir.clone(), Role::Target).await;
        if let Ok(Err(error)) = claimed {
            let why = Why::Target(error);
            let way_out = way_out(&why).map_or(String::new(), |way_out| format!(" ({way_out})"));
            let at = format!("{}::{}", host.host, Line(&dir.name));
            return Ok(Some(format!("{at}: nothing can be moved to there: {why}{way_out}")));
        }
        let claim = answer(host, claimed)?;
        answer(host, client.release(context(), dir.clone()).await)?;
        if claim.token.is_none() {
            let at = format!("{}::{}", host.host, Line(&dir.name));
            return Ok(Some(format!(
                "{at}: nothing can be moved to there: it can't be written to; make it writable there for the user that realized runs as, or \
                 mount it for writing"
            )));
        }
    }
    if rights != Rights::ALL {
        say!(
            "to move files out takes read and delete, to move files in takes write, and replace where something is there already; \
             rights are given there in the section with the key {}",
            identity.public()
        );
    }
    Ok(None)
}
