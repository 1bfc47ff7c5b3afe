//! `realize check`: what is between this host and a directory on another.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::ExitCode};

use anyhow::Result;
use realize::{
    client::Link,
    clock::TokioClock,
    location::Location,
    model::{Kind, Line},
    service::{DirId, Hello, RealizeServiceClient, Rights, RunId, SERVICE_VERSION, ServiceError, context},
    wire::LinkId,
};

use crate::{
    args::Known,
    random,
    remote::{HostName, Identity, no_such_directory},
    resolve::answer,
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
        let (link, let_in) = identity.link(&host, &clock, id, |_| {}).await?;
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
    let below = Some(dir.below.clone()).filter(|below| !below.is_root());
    let found = client
        .stat(context(), DirId::new(&dir.name), below.into_iter().collect(), false)
        .await;
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
    if let Some(found) = found.into_iter().next() {
        let what = match found? {
            None => "there is nothing yet; a move to there makes its last component",
            Some(entry) if entry.kind == Kind::Dir => "a directory",
            Some(_) => "no directory",
        };
        say!("{}::{}/{}: {what}", host.host, Line(&dir.name), dir.below);
    }
    let has_all = |(known, rights): &(String, Rights)| *known == dir.name && *rights == Rights::ALL;
    if !hello.rights.iter().any(has_all) {
        say!(
            "to move files out takes read and delete, to move files in takes write, and replace where something is there already; \
             rights are given there in the section with the key {}",
            identity.public()
        );
    }
    Ok(None)
}
