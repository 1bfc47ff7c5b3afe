//! From SRC and DST to services and directories: local ones in this process, others by links.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt::Display,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use futures::future::{join, join_all};
use realize::{
    algo::{MoveError, Side, Source, Target, no_answer},
    client::{LetIn, Link, LinkEvent, LinkLimits},
    clock::{Clock, TokioClock},
    deadline::RetryFor,
    fs::os::OsFs,
    limits::Limits,
    location::Location,
    model::{Entry, Escaped, Kind, Line, Name, RelPath},
    server::{RealizeServer, Roots},
    service::{
        Answer, Content, DirId, RealizeServiceClient, RealizeServiceRequest, RealizeServiceResponse, Rights,
        ServiceError, context,
    },
    throttle::{Bucket, Rate},
    wire::LinkId,
};
use tarpc::{
    client::{RpcError, stub::Stub},
    context::Context as CallContext,
};

use crate::{
    args::Args,
    ends::{self, SourceKind, SourceRoot, TargetRoot, shown},
    random,
    remote::{HostName, Identity, Links, jitter, no_such_directory},
    ui::Ui,
};

/// A service in this process or on another host.
#[derive(Clone)]
pub enum Service {
    /// In this process. What is written there is taken from the bucket, where there is a limit.
    Local(RealizeServer<OsFs, TokioClock>, Option<Arc<Bucket<TokioClock>>>),
    /// On another host.
    Remote(Link),
}

impl Stub for Service {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(&self, context: CallContext, request: Self::Req) -> Result<Self::Resp, RpcError> {
        match self {
            Self::Local(server, limit) => {
                if let Some(limit) = limit {
                    limit.send(written_bytes(&request)).await;
                }
                server.answer(request).await.map_err(RpcError::Server)
            }
            Self::Remote(link) => link.call(context, request).await,
        }
    }
}

type Client = RealizeServiceClient<Service>;

/// Bytes of files that the call brings. (What is renamed is not written.)
fn written_bytes(request: &RealizeServiceRequest) -> u64 {
    let bytes = |data: &bytes::Bytes| data.len() as u64;
    match request {
        RealizeServiceRequest::Send { data, .. } => bytes(data),
        RealizeServiceRequest::ApplyDelta { delta, .. } => bytes(&delta.data),
        RealizeServiceRequest::Put { files, .. } => files
            .0
            .iter()
            .map(|file| match &file.content {
                Content::File { data, .. } | Content::Symlink(data) => bytes(data),
            })
            .sum(),
        _ => 0,
    }
}

/// What a directory must allow for files to be moved out of it.
const TO_LEAVE: Rights = Rights {
    read: true,
    write: false,
    replace: false,
    delete: true,
};

/// What a directory must allow for files to be moved into it.
const TO_ARRIVE: Rights = Rights {
    read: false,
    write: true,
    replace: true,
    delete: false,
};

/// Both ends of a move, which may begin again.
pub struct Ends<'a> {
    /// Where files leave.
    pub sources: Vec<Source<Service>>,
    /// Where they arrive.
    pub target: Target<Service>,
    hosts: Hosts<'a>,
    /// What is served in this process. It outlives every try: a sync that failed is not forgotten.
    roots: Arc<Roots<OsFs, TokioClock>>,
    local: RealizeServer<OsFs, TokioClock>,
    /// Of moves that stay on this host.
    local_limit: Option<Arc<Bucket<TokioClock>>>,
    /// How each source is called.
    names: Vec<String>,
    /// Which of the sources are on other hosts.
    remote_sources: BTreeMap<usize, (HostName, DirId)>,
    /// Where the target is, when that is another host; the directory is missing where a dry run makes none.
    remote_target: Option<(HostName, Option<DirId>)>,
    /// The target, when it was made for this move.
    made: Option<PathBuf>,
}

/// A source on the command line.
enum Given {
    Local(PathBuf, SourceKind),
    Remote(HostName, DirId, Option<Entry>),
}

/// The target on the command line.
enum Goal {
    Local(TargetRoot),
    /// `None` when it is missing and a dry run makes none.
    Remote(HostName, Option<DirId>),
}

impl<'a> Ends<'a> {
    /// Finds out what the command line means, connects to the hosts it names, and opens the local directories. `first_link` is what
    /// the first link is; others are numbered from it.
    pub async fn open(
        args: &'a Args,
        clock: &'a TokioClock,
        limits: &Limits,
        first_link: LinkId,
        ui: &'a Ui<TokioClock>,
    ) -> Result<Self> {
        let target_text = args.target.as_deref().context("no DST is given")?;
        let mut hosts = Hosts::new(args, clock, first_link, ui);
        let mut given = Vec::new();
        for text in &args.sources {
            given.push(hosts.source(text).await?);
        }
        let single_file = matches!(
            given.as_slice(),
            [Given::Local(_, SourceKind::File) | Given::Remote(_, _, Some(_))]
        );
        let (goal, renamed) = hosts.target(target_text, single_file, args.dry_run).await?;
        let local: Vec<_> = given
            .iter()
            .filter_map(|given| match given {
                Given::Local(path, kind) => Some((path.clone(), *kind)),
                Given::Remote(..) => None,
            })
            .collect();
        let local_target = match &goal {
            Goal::Local(root) => Some(root),
            Goal::Remote(..) => None,
        };
        let roots = ends::source_roots(&local, renamed.as_ref(), local_target)?;
        let made = local_target
            .filter(|target| target.is_missing && !args.dry_run)
            .map(|target| target.path.clone());
        let (served, dirs, target_dir) = serve_locally(args, clock, limits, &roots, local_target).await?;
        let served = Arc::new(served);
        let server = RealizeServer::new(served.clone());
        // Without a connection, what is written is limited: by the lower limit, for it is both sent and received.
        let is_local = local_target.is_some() && local.len() == given.len();
        let local_limit = args.up().into_iter().chain(args.down()).min().filter(|_| is_local);
        let local_limit = local_limit.map(|rate| Bucket::new(clock.clone(), Some(rate)));
        let service = local_client(&server, local_limit.clone());
        let mut names: Vec<_> = roots.iter().map(|root| shown(&root.path)).collect();
        let target_host = match &goal {
            Goal::Local(_) => None,
            Goal::Remote(host, _) => Some(host.clone()),
        };
        let mut sources: Vec<_> = roots
            .into_iter()
            .zip(dirs)
            .map(|(root, dir)| Source {
                service: service.clone(),
                dir,
                beside_target: target_host.is_none(),
                files: root.files,
            })
            .collect();
        let mut remote_sources = BTreeMap::new();
        for given in given {
            if let Given::Remote(host, dir, file) = given {
                names.push(format!("{}::{}", host.host, Line(&dir.name)));
                remote_sources.insert(sources.len(), (host.clone(), dir.clone()));
                let mut source = hosts.remote_source(&host, dir, file, renamed.as_ref())?;
                source.beside_target = target_host.as_ref() == Some(&host);
                sources.push(source);
            }
        }
        let mut remote_target = None;
        let target = match goal {
            Goal::Local(_) => Target {
                service,
                dir: target_dir,
            },
            Goal::Remote(host, dir) => {
                let service = hosts.client(&host)?;
                remote_target = Some((host, dir.clone()));
                Target { service, dir }
            }
        };
        Ok(Self {
            sources,
            target,
            hosts,
            roots: served,
            local: server,
            local_limit,
            names,
            remote_sources,
            remote_target,
            made,
        })
    }

    /// What is wrong with which end, and what to do about it.
    pub fn explain(&self, error: &MoveError) -> String {
        let source = error.source_index();
        let end = match error {
            MoveError::Side(Side::Target, _) => {
                let target = self.remote_target.as_ref();
                target.and_then(|(host, dir)| Some((host, dir.as_ref()?)))
            }
            _ => {
                let source = source.and_then(|source| self.remote_sources.get(&source));
                source.map(|(host, dir)| (host, dir))
            }
        };
        match (error, end) {
            (MoveError::Side(_, ServiceError::NotFound), Some((host, dir))) if dir.below.is_root() => {
                return no_such_directory(host, &dir.name);
            }
            (MoveError::Side(side, error @ ServiceError::Denied(_)), Some((host, dir))) => {
                let wanted = match side {
                    Side::Source(_) => TO_LEAVE,
                    Side::Target => TO_ARRIVE,
                };
                return self.hosts.entrances.no_right(host, &dir.name, error, wanted);
            }
            _ => {}
        }
        let which = source
            .and_then(|source| self.names.get(source))
            .filter(|_| self.names.len() > 1);
        let which = which.map_or(String::new(), |name| format!("{name}: "));
        let way_out = match error {
            MoveError::Locked(..) => "; wait for it to end, or stop it",
            MoveError::Another(_) => {
                "; what is left in the one before stays there. Where this is the right one, run the same command again"
            }
            MoveError::Nested(..) => ": nothing was moved from there; name directories that are apart",
            _ => "",
        };
        format!("{which}{error}{way_out}")
    }

    /// Removes the target again that was made for a move that did not begin.
    pub fn unmake_target(&self) {
        if let Some(path) = &self.made {
            ends::unmake_target(path);
        }
    }

    /// Whether this source is on another host.
    pub fn is_remote(&self, source: usize) -> bool {
        self.remote_sources.contains_key(&source)
    }

    /// Whether there are links.
    pub fn has_links(&self) -> bool {
        self.remote_target.is_some() || !self.remote_sources.is_empty()
    }

    /// Waits until all hosts have let this one in; why one does not. For when a call had no answer.
    pub async fn enter(&mut self) -> Result<()> {
        self.hosts.entrances.pass_all().await
    }

    /// Whether a host has been lost for as long as is to be waited for it.
    pub fn are_given_up(&self) -> bool {
        let (RetryFor(retry_for), now) = (self.hosts.args.retry_for, self.hosts.clock.now());
        let is_lost = |since: &Duration| now.saturating_sub(*since) >= retry_for;
        self.hosts.has_given_up || lock(&self.hosts.lost).values().any(is_lost)
    }

    /// Ends the links. What is open in this process is closed.
    pub async fn hang_up(&mut self) {
        let local = self.local.clone();
        join(local.end(), self.close_links()).await;
    }

    /// Ends the links, and takes the tokens off the local roots: for a process that ends before its move.
    pub async fn leave(&mut self) {
        let local = self.local.clone();
        join(local.leave(), self.close_links()).await;
    }

    async fn close_links(&mut self) {
        self.local = RealizeServer::new(self.roots.clone());
        let service = local_client(&self.local, self.local_limit.clone());
        for source in &mut self.sources {
            source.service = service.clone();
        }
        self.target.service = service;
        let links = std::mem::take(&mut self.hosts.links);
        // Beside each other: of one that is lost the others are to know.
        join_all(links.into_values().map(|link| link.close(self.hosts.clock))).await;
    }

    /// Connects anew to the hosts that the links led to, the first as `first_link`. What was named keeps its meaning, though files of it may
    /// have been moved by now.
    pub async fn connect_again(&mut self, first_link: LinkId) -> Result<()> {
        self.hosts.next_link = first_link;
        self.hosts.is_again = true;
        for (source, (host, _)) in &self.remote_sources {
            self.sources[*source].service = self.hosts.connect(host).await?;
        }
        if let Some((host, _)) = &self.remote_target {
            self.target.service = self.hosts.connect(host).await?;
        }
        Ok(())
    }
}

/// Who this host is, and which hosts have not been seen to let it in yet.
#[derive(Default)]
struct Entrances {
    identity: Option<Identity>,
    ahead: BTreeMap<HostName, LetIn>,
}

impl Entrances {
    /// Waits until `host` has let this one in; why it does not.
    async fn pass(&mut self, host: &HostName) -> Result<()> {
        let (Some(identity), Some(let_in)) = (&self.identity, self.ahead.remove(host)) else {
            return Ok(());
        };
        let entered = let_in.wait().await;
        entered.map_err(|error| identity.explain(host, error))
    }

    /// What to do where `host` says `why` not to use its directory of this name.
    fn no_right(&self, host: &HostName, dir: &str, why: impl Display, wanted: Rights) -> String {
        match &self.identity {
            Some(identity) => identity.no_right(host, dir, why, wanted),
            None => why.to_string(),
        }
    }

    async fn pass_all(&mut self) -> Result<()> {
        while let Some(host) = self.ahead.keys().next().cloned() {
            self.pass(&host).await?;
        }
        Ok(())
    }
}

fn local_client(server: &RealizeServer<OsFs, TokioClock>, limit: Option<Arc<Bucket<TokioClock>>>) -> Client {
    RealizeServiceClient::from(Service::Local(server.clone(), limit))
}

/// Opens the local directories, to be served in this process.
async fn serve_locally(
    args: &Args,
    clock: &TokioClock,
    limits: &Limits,
    sources: &[SourceRoot],
    target: Option<&TargetRoot>,
) -> Result<(Roots<OsFs, TokioClock>, Vec<DirId>, Option<DirId>)> {
    let roots = Roots::new(OsFs::new(), clock.clone(), limits.clone(), random()?);
    let mut target_dir = None;
    if let Some(target) = target {
        if target.is_missing && !args.dry_run {
            ends::make_target(&target.path)?;
        }
        if !args.dry_run {
            ends::sync_name_of(&target.path)?;
        }
        if !(target.is_missing && args.dry_run) {
            let opened = roots.add("target", &target.path, args.accept_unsynced).await;
            opened.with_context(|| format!("cannot open {}", shown(&target.path)))?;
            target_dir = Some(DirId::new("target"));
        }
    }
    let mut dirs = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let name = format!("source {index}");
        let opened = roots.add(name.clone(), &source.path, args.accept_unsynced).await;
        opened.with_context(|| format!("cannot open {}", shown(&source.path)))?;
        dirs.push(DirId::new(name));
    }
    if !args.dry_run
        && !sources.is_empty()
        && let Some(state) = ends::state_dir(sources)
    {
        // Without it more is read the next time.
        roots.remember_in(&state).await.ok();
    }
    Ok((roots, dirs, target_dir))
}

/// The hosts of a command line, each with its link.
struct Hosts<'a> {
    args: &'a Args,
    clock: &'a TokioClock,
    /// What the next link is.
    next_link: LinkId,
    /// Whether all were reached before.
    is_again: bool,
    ui: &'a Ui<TokioClock>,
    /// What this program sends is taken from it, however many hosts it goes to.
    sending: Option<Arc<Bucket<TokioClock>>>,
    links: Links,
    entrances: Entrances,
    /// Hosts that are lost, and since when.
    lost: Arc<Mutex<BTreeMap<HostName, Duration>>>,
    /// Whether one was waited for as long as is asked for.
    has_given_up: bool,
}

impl<'a> Hosts<'a> {
    fn new(args: &'a Args, clock: &'a TokioClock, next_link: LinkId, ui: &'a Ui<TokioClock>) -> Self {
        Self {
            args,
            clock,
            next_link,
            is_again: false,
            ui,
            sending: args.up().map(|rate| Bucket::new(clock.clone(), Some(rate))),
            links: Links::new(),
            entrances: Entrances::default(),
            lost: Arc::default(),
            has_given_up: false,
        }
    }

    fn client(&self, host: &HostName) -> Result<Client> {
        let link = self.links.get(host).context("a host without a link")?;
        Ok(RealizeServiceClient::from(Service::Remote(link.clone())))
    }

    async fn connect(&mut self, host: &HostName) -> Result<Client> {
        if !self.links.contains_key(host) {
            if self.entrances.identity.is_none() {
                let known = &self.args.known;
                let identity = Identity::load(known.key.as_deref(), known.hosts.as_deref())?;
                self.entrances.identity = Some(identity);
            }
            let identity = self.entrances.identity.as_ref().context("no identity")?;
            let RetryFor(reconnect) = self.args.retry_for;
            let mut limits = LinkLimits {
                reconnect,
                ..LinkLimits::default()
            };
            if let Some(slowest) = self.args.up().into_iter().chain(self.args.down()).min() {
                limits = limits.at(slowest.get());
            }
            let mut pauses = limits.pauses(jitter());
            let lost_since = lock(&self.lost).get(host).copied();
            let since = lost_since.unwrap_or(self.clock.now());
            let RetryFor(patience) = match self.is_again {
                true => self.args.retry_for,
                false => self.args.connect_for,
            };
            let (link, let_in) = loop {
                let id = self.next_link;
                self.next_link.number += 1;
                let observer = self.observer(host, reconnect);
                let mut limits = limits.clone();
                if !patience.is_zero() {
                    let left = patience.saturating_sub(self.clock.now().saturating_sub(since));
                    limits.connect = limits.connect_within(left);
                }
                let link = identity.link(host, self.sending.clone(), limits, self.clock, id, observer);
                let error = match link.await {
                    Ok(link) => break link,
                    Err(error) => error,
                };
                let left = patience.saturating_sub(self.clock.now().saturating_sub(since));
                if left.is_zero() || !error.is_passing() {
                    self.has_given_up = error.is_passing();
                    return Err(identity.explain(host, error));
                }
                let pause = pauses.next().unwrap_or_default().min(left);
                self.ui.say(&waits(&host.host, &error, pause));
                self.clock.sleep(pause).await;
            };
            lock(&self.lost).remove(host);
            self.links.insert(host.clone(), link);
            self.entrances.ahead.insert(host.clone(), let_in);
            if let Some(rate) = self.args.down() {
                self.limit(host, rate).await?;
            }
        }
        self.client(host)
    }

    /// Takes in what happens to the connection of a link to `host`, which is tried again for as long as `reconnect`.
    fn observer(&self, host: &HostName, reconnect: Duration) -> impl Fn(LinkEvent) + Send + Sync + 'static {
        let reconnect = match reconnect.as_secs() {
            secs if secs % 60 == 0 => format!("{} min", secs / 60),
            secs => format!("{secs} s"),
        };
        let (tell, host, clock) = (self.ui.teller(), host.clone(), self.clock.clone());
        let lost = self.lost.clone();
        let name = host.host.clone();
        move |event| match event {
            LinkEvent::Lost(why) => {
                lock(&lost).entry(host.clone()).or_insert(clock.now());
                tell(&format!(
                    "{name}: the connection was lost ({why}); connecting again, for {reconnect} at most (Ctrl-C loses nothing)"
                ));
            }
            LinkEvent::Back(_) => {
                lock(&lost).remove(&host);
                tell(&format!("{name}: connected again; going on"));
            }
            LinkEvent::Over => drop(lock(&lost).remove(&host)),
            LinkEvent::Waiting(why, pause) => tell(&waits(&name, why, pause)),
        }
    }

    /// Has `host` send no more than its part of this.
    async fn limit(&mut self, host: &HostName, rate: Rate) -> Result<()> {
        let part = (rate.get() / self.count_others()).max(Rate::MIN);
        let limited = self.client(host)?.configure(context(), Some(part)).await;
        if limited.is_err() {
            // Who is not let in has no answer.
            self.entrances.pass(host).await?;
        }
        answer(host, limited).context("it does not limit what it sends")
    }

    /// How many hosts, by their keys, the command line names.
    fn count_others(&self) -> u64 {
        let named = self.args.sources.iter().chain(&self.args.target);
        let keys = named.filter_map(|text| match Location::parse(text).ok()? {
            Location::Local(_) => None,
            Location::Remote { host, .. } => self.entrances.identity.as_ref()?.key_of(&host),
        });
        let keys: BTreeSet<_> = keys.collect();
        keys.len().max(1) as u64
    }

    /// What is at each of `paths` in the configured directory `name` of `host`.
    async fn entries(
        &mut self,
        host: &HostName,
        name: &str,
        paths: Vec<RelPath>,
        restore: bool,
    ) -> Result<Vec<Option<Entry>>> {
        let client = self.connect(host).await?;
        let count = paths.len();
        let found = client.stat(context(), DirId::new(name), paths.into(), restore).await;
        if found.is_err() {
            self.entrances.pass(host).await?;
        }
        let found = match found {
            Ok(Err(ServiceError::NotFound)) => bail!(no_such_directory(host, name)),
            Ok(Err(error @ ServiceError::Denied(_))) => {
                let wanted = if restore { TO_LEAVE } else { TO_ARRIVE };
                bail!(self.entrances.no_right(host, name, error, wanted))
            }
            found => answer(host, found)?,
        };
        anyhow::ensure!(found.len() == count, "{}: not the answer to what was asked", host.host);
        Ok(found.into_iter().collect::<Result<_, _>>()?)
    }

    async fn source(&mut self, text: &OsStr) -> Result<Given> {
        match Location::parse(text)? {
            Location::Local(path) => {
                let kind = ends::source_kind(&path)?;
                Ok(Given::Local(path, kind))
            }
            Location::Remote { host, port, dir, below } => {
                let host = HostName { host, port };
                let dir = DirId { name: dir, below };
                // Nothing is told of a configured directory itself but that it is there.
                let paths = Some(dir.below.clone()).filter(|below| !below.is_root());
                let found = self.entries(&host, &dir.name, Vec::from_iter(paths), true).await?;
                match found.into_iter().next().flatten() {
                    _ if dir.below.is_root() => Ok(Given::Remote(host, dir, None)),
                    None => bail!("cannot move {}: no such file or directory", Escaped(text.as_bytes())),
                    Some(entry) if entry.kind == Kind::Dir => Ok(Given::Remote(host, dir, None)),
                    Some(_) if text.as_bytes().ends_with(b"/") => {
                        bail!("{} is not a directory", Escaped(text.as_bytes()))
                    }
                    Some(entry) => Ok(Given::Remote(host, dir, Some(entry))),
                }
            }
        }
    }

    async fn target(&mut self, text: &OsStr, single_file: bool, dry_run: bool) -> Result<(Goal, Option<Name>)> {
        let (host, dir) = match Location::parse(text)? {
            Location::Local(path) => {
                let (root, renamed) = ends::target_root(&path, single_file)?;
                return Ok((Goal::Local(root), renamed));
            }
            Location::Remote { host, port, dir, below } => (HostName { host, port }, DirId { name: dir, below }),
        };
        let as_file = single_file && !text.as_bytes().ends_with(b"/");
        let Some((parent, name)) = dir.below.split() else {
            // Its claim tells whether it is there.
            self.connect(&host).await?;
            return Ok((Goal::Remote(host, Some(dir)), None));
        };
        let parent = DirId {
            name: dir.name.clone(),
            below: parent,
        };
        let above = Some(parent.below.clone()).filter(|above| !above.is_root());
        let paths = std::iter::once(dir.below.clone()).chain(above).collect();
        let mut found = self.entries(&host, &dir.name, paths, false).await?.into_iter();
        match found.next().flatten() {
            Some(entry) if entry.kind == Kind::Dir => return Ok((Goal::Remote(host, Some(dir)), None)),
            Some(_) if !as_file => bail!("{} is not a directory", Escaped(text.as_bytes())),
            _ => {}
        }
        let is_dir = |entry: Entry| entry.kind == Kind::Dir;
        if found.next().is_some_and(|above| !above.is_some_and(is_dir)) {
            bail!(
                "cannot use {}: only its last component is made, and the one above it is no directory; make that one on {} with mkdir -p",
                Escaped(text.as_bytes()),
                host.host
            );
        }
        if as_file {
            return Ok((Goal::Remote(host, Some(parent)), Some(name)));
        }
        Ok((Goal::Remote(host, (!dry_run).then_some(dir)), None))
    }

    fn remote_source(
        &self,
        host: &HostName,
        dir: DirId,
        file: Option<Entry>,
        renamed: Option<&Name>,
    ) -> Result<Source<Service>> {
        let service = self.client(host)?;
        let Some((parent, name)) = file.and_then(|_| dir.below.split()) else {
            return Ok(Source {
                service,
                dir,
                beside_target: false,
                files: None,
            });
        };
        let to: RelPath = renamed.cloned().unwrap_or_else(|| name.clone()).into();
        Ok(Source {
            service,
            dir: DirId {
                name: dir.name,
                below: parent,
            },
            beside_target: false,
            files: Some(vec![(name.into(), to)]),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn waits(name: &str, why: impl Display, pause: Duration) -> String {
    format!("{name}: {why}; trying again in {} s", pause.as_secs().max(1))
}

/// The answer of a call that all depends on.
pub fn answer<T>(host: &HostName, answer: Result<Answer<T>, RpcError>) -> Result<T> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(anyhow!("{}: {error}", host.host)),
        // A link gives its own reason.
        Err(error) => Err(anyhow!("{}: {}", host.host, no_answer(error))),
    }
}
