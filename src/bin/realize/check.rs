//! `realize check`: what is between this host and a directory on another.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::ExitCode};

use anyhow::Result;
use realize::{
    client::Link,
    clock::TokioClock,
    location::{DEFAULT_PORT, Location},
    service::{DirId, RealizeServiceClient, Rights, RunId, SERVICE_VERSION, ServiceError, context},
};

use crate::{
    args::Args,
    random,
    remote::{HostName, Identity, no_right, no_such_directory, own_name, plain},
    resolve::answer,
};

/// Goes from the name to the rights, and stops where something is in the way.
pub async fn check(args: &Args, text: &OsStr) -> Result<ExitCode> {
    let (host, dir) = parse(text)?;
    let identity = Identity::load(args.key.as_deref(), args.hosts.as_deref())?;
    let clock = TokioClock::new();
    let run = RunId(random()?);
    let connected = async {
        let (link, let_in) = identity.link(&host, &clock, run, |_| {}).await?;
        let_in.wait().await?;
        Ok(link)
    };
    let link = connected.await.map_err(|error| identity.explain(&host, error))?;
    println!("{}: reached; both hosts have proven who they are", host.host);
    let checked = check_rights(&link, &host, run, dir.as_deref()).await;
    link.close(&clock).await;
    checked
}

fn parse(text: &OsStr) -> Result<(HostName, Option<String>)> {
    if let Ok(Location::Remote { host, port, dir, .. }) = Location::parse(text) {
        return Ok((HostName { host, port }, Some(dir)));
    }
    let with_dir = [text.as_bytes(), b"::x"].concat();
    match Location::parse(OsStr::from_bytes(&with_dir))? {
        Location::Remote { host, port, .. } => Ok((HostName { host, port }, None)),
        Location::Local(_) => Ok((
            HostName {
                host: text.to_string_lossy().into_owned(),
                port: DEFAULT_PORT,
            },
            None,
        )),
    }
}

async fn check_rights(link: &Link, host: &HostName, run: RunId, dir: Option<&str>) -> Result<ExitCode> {
    let client = RealizeServiceClient::from(link.clone());
    let hello = answer(host, client.hello(context(), SERVICE_VERSION, run).await)?;
    for (name, rights) in &hello.rights {
        println!("{}::{}: {}", host.host, plain(name), listed(*rights));
    }
    let Some(dir) = dir else {
        if hello.rights.is_empty() {
            println!(
                "no directory may be used; add to [peers.\"{}\"] there: rights.DIRECTORY = [\"read\", \"write\", \"replace\", \"delete\"]",
                own_name()
            );
            return Ok(ExitCode::from(1));
        }
        return Ok(ExitCode::SUCCESS);
    };
    match client.stat(context(), DirId::new(dir), Vec::new(), false).await {
        Ok(Ok(_)) => {
            let has_all = hello
                .rights
                .iter()
                .any(|(known, rights)| known == dir && *rights == Rights::ALL);
            if !has_all {
                println!(
                    "to move files out takes read and delete, to move files in takes write, and replace where something is there already; \
                     rights are given there in the section of this host"
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        Ok(Err(ServiceError::NotFound)) => {
            println!("{}", no_such_directory(host, dir));
            Ok(ExitCode::from(1))
        }
        Ok(Err(ServiceError::Denied(_))) => {
            println!("{}", no_right(host, dir, "this host has no right to it"));
            Ok(ExitCode::from(1))
        }
        other => {
            answer(host, other)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn listed(rights: Rights) -> String {
    let all = [
        (rights.read, "read"),
        (rights.write, "write"),
        (rights.replace, "replace"),
        (rights.delete, "delete"),
    ];
    let names: Vec<_> = all.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    names.join(", ")
}
