//! What `realize` does, on virtual time.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join;
use realize::{
    algo::{
        Begun, Event, Halt, MoveError, MoveOptions, MoveReport, Next, Side, Source, Target, Tries, is_unanswered,
        move_files,
    },
    client::{ConnectError, Dial, LetIn, Link, LinkEvent},
    clock::{Clock, timeout},
    limits::Limits,
    net::Network,
    server::{RealizeServer, Roots},
    service::{
        DirId, RealizeServiceClient, RealizeServiceRequest, RealizeServiceResponse, RunId, ServiceError, context,
    },
    throttle::{Bucket, Gate, Limited, Rate},
    tls::Connector,
    wire::LinkId,
};
use tarpc::{RequestName, client::stub::Stub};

use super::{
    DAEMON, Direction, Early, Ending, KEYS, MOVER, OtherConfig, PORT, Shared, TARGET_ROOT, calls::UnderWay, key,
    link_limits, try_limits,
};
use crate::{
    clock::SimClock,
    fs::{Disk, Disks},
    net::{SimNetwork, SimStream},
    service::SimService,
};

/// Connections to the daemon.
struct SimDial {
    network: SimNetwork,
    connector: Connector,
    /// What is sent is taken from it, where there is a limit.
    sending: Option<Arc<Bucket<SimClock>>>,
}

impl Dial for SimDial {
    type Stream = tokio_rustls::client::TlsStream<Limited<SimStream, SimClock>>;

    async fn dial(&self) -> Result<Self::Stream, ConnectError> {
        let stream = self.network.connect(DAEMON, PORT).await.map_err(ConnectError::Tcp)?;
        let stream = Limited::new(stream, Gate::new(self.sending.clone()));
        let expected = key(KEYS[1]).public();
        self.connector
            .connect(Some(&expected), stream)
            .await
            .map_err(ConnectError::Tls)
    }
}

/// The service of the other host.
struct Remote(Link, Arc<Shared>);

impl Stub for Remote {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(
        &self,
        context: tarpc::context::Context,
        request: Self::Req,
    ) -> Result<Self::Resp, tarpc::client::RpcError> {
        let _under_way = UnderWay::new(&self.1, request.name());
        let (name, withheld) = (request.name().to_owned(), self.1.state().withheld);
        let answer = self.0.call(context, request).await;
        let mut state = self.1.state();
        // Whatever was begun before is let through, and what comes while that changes may be.
        if state.withheld == withheld && withheld.0.is_some_and(|other| is_wrong(other, &answer)) {
            state.wrongs.push(format!("{name} was served: {:?}", withheld.0));
        }
        drop(state);
        answer
    }
}

/// Whether a call that has this answer had no right to it.
fn is_wrong(other: OtherConfig, answer: &Result<RealizeServiceResponse, tarpc::client::RpcError>) -> bool {
    use RealizeServiceResponse::{
        ApplyDelta, Delete, Finish, FinishDirs, MakeDirs, Put, RemoveDirs, Rename, Send, Settle,
    };
    let any = |results: &[Result<(), ServiceError>]| results.iter().any(Result::is_ok);
    match (other, answer) {
        (OtherConfig::Same | OtherConfig::Directories, _) | (_, Err(_)) => false,
        (OtherConfig::WithoutPeer, Ok(_)) => true,
        (OtherConfig::ReadOnly, Ok(answer)) => match answer {
            Put(Ok(results))
            | Settle(Ok(results))
            | MakeDirs(Ok(results))
            | Delete(Ok(results))
            | RemoveDirs(Ok(results))
            | FinishDirs(Ok(results)) => any(results),
            Send(done) | ApplyDelta(done) => done.is_ok(),
            Finish(finished) => finished.is_ok(),
            Rename(renamed) => renamed.iter().flatten().any(Result::is_ok),
            _ => false,
        },
    }
}

/// What the mover is made of, each time it starts.
#[derive(Clone)]
pub(super) struct Mover {
    pub shared: Arc<Shared>,
    pub network: SimNetwork,
    pub disk: Disk,
    pub direction: Direction,
    pub seed: u64,
    pub rate: Option<Rate>,
    pub early: Option<Early>,
    pub limits: Limits,
    /// The roots that are moved.
    pub sources: &'static [&'static str],
    pub before_try: Arc<dyn Fn() + Send + Sync>,
}

/// For closing connections and removing tokens when a run ends before its end.
const LEAVE: Duration = Duration::from_millis(500);

/// What was brought over whole has so long to come to its end once the time is over.
const GRACE: Duration = Duration::from_secs(1);

/// What a run that is ended has to leave in order.
type Open = Mutex<Option<(RealizeServer<Disks, SimClock>, Link)>>;

impl Mover {
    pub async fn run(self) -> turmoil::Result {
        self.shared.seen(MOVER);
        let number = {
            let mut state = self.shared.state();
            state.started += 1;
            state.stays.clear();
            state.started
        };
        self.shared.note(MOVER, &"starts");
        let ending = self.realize(number).await;
        self.shared.note(MOVER, &ending);
        self.shared.state().ended.push(ending);
        Ok(())
    }

    /// What `realize` does between its first look at the command line and its last word.
    async fn realize(&self, number: u8) -> Ending {
        let clock = SimClock::on(self.disk.machine());
        let (halt, open) = (Halt::default(), Open::default());
        let moving = self.move_all(&clock, number, &halt, &open);
        let millis = |millis: u16| Duration::from_millis(millis.into());
        let ended = match self.early.filter(|_| number == 1) {
            None => return moving.await,
            Some(Early::Signal(after)) => timeout(&clock, millis(after), moving).await,
            Some(Early::TimeOver(after)) => {
                let over = async {
                    clock.sleep(millis(after) * 3 / 4).await;
                    halt.begin_nothing();
                    clock.sleep(millis(after) / 4).await;
                    halt.end();
                    clock.sleep(GRACE).await;
                };
                tokio::select! {
                    biased;
                    ended = moving => Some(ended),
                    () = over => None,
                }
            }
        };
        if let Some(ended) = ended {
            return ended;
        }
        let left = open.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((local, link)) = left {
            let leaving = join(local.leave(), link.close(&clock));
            let _left = timeout(&clock, LEAVE, leaving).await;
        }
        Ending::Cut
    }

    /// Moves until all is moved or it can't be gone on.
    async fn move_all(&self, clock: &SimClock, number: u8, halt: &Halt, open: &Open) -> Ending {
        let run = RunId([number; 16]);
        let mut link = LinkId {
            run,
            attempt: 0,
            number: 0,
        };
        // They outlive every try: a sync that failed is not forgotten.
        let roots = Roots::new(
            Disks::of(&self.disk, &self.disk),
            clock.clone(),
            self.limits.clone(),
            [1; 16],
        );
        let own = match self.direction {
            Direction::Send => self.sources,
            Direction::Fetch => TARGET_ROOT,
        };
        for root in own {
            let path = format!("/{root}");
            if let Err(error) = roots.add(*root, Path::new(&path), false).await {
                return Ending::Failed(MoveError::Side(Side::Source(0), ServiceError::io("open", &error)));
            }
        }
        let roots = Arc::new(roots);
        let mut tries = Tries::new(try_limits());
        let begun = Begun::default();
        let sending = self.rate.map(|rate| Bucket::new(clock.clone(), Some(rate)));
        loop {
            (self.before_try)();
            link.attempt += 1;
            let (next, ending) = match self
                .connect_and_move(clock, link, &roots, &sending, (halt, &begun), open)
                .await
            {
                // Both hosts know each other: whatever it is, it may be better in a while.
                Err(error) => (tries.not_connected(true), Ending::NotConnected(error.to_string())),
                Ok(moved) => {
                    if let Ok(report) = &moved {
                        self.shared.state().bytes_sent += report.bytes_sent;
                    }
                    let is_held = self.direction == Direction::Fetch && matches!(moved, Err(MoveError::Locked(..)));
                    let next = match is_held {
                        true => tries.held(clock.now()),
                        false => tries.ended(&moved, true),
                    };
                    let ending = match moved {
                        Ok(_) => Ending::Report(tries.moved().clone()),
                        Err(error) => Ending::Failed(error),
                    };
                    (next, ending)
                }
            };
            match next {
                Next::Over => return ending,
                Next::Again(pause) | Next::WaitsForSource(pause) => clock.sleep(pause).await,
            }
        }
    }

    /// One move, if there is a connection.
    async fn connect_and_move(
        &self,
        clock: &SimClock,
        id: LinkId,
        roots: &Arc<Roots<Disks, SimClock>>,
        sending: &Option<Arc<Bucket<SimClock>>>,
        (halt, begun): (&Halt, &Begun),
        open: &Open,
    ) -> Result<Result<MoveReport, MoveError>, ConnectError> {
        let (link, let_in) = self.link(clock, id, sending).await?;
        let local = RealizeServer::new(roots.clone());
        *open.lock().unwrap_or_else(PoisonError::into_inner) = Some((local.clone(), link.clone()));
        let moved = match self.limit(&link).await {
            Ok(()) => self.move_once(local.clone(), &link, id, (halt, begun)).await,
            Err(error) => Err(MoveError::Side(Side::Target, error)),
        };
        open.lock().unwrap_or_else(PoisonError::into_inner).take();
        local.end().await;
        link.close(clock).await;
        if is_unanswered(&moved) {
            let_in.wait().await?;
        }
        Ok(moved)
    }

    /// Tells the daemon what to send at most.
    async fn limit(&self, link: &Link) -> Result<(), ServiceError> {
        let Some(rate) = self.rate else { return Ok(()) };
        self.shared.state().rates_told += 1;
        let client = RealizeServiceClient::from(link.clone());
        let told = client.configure(context(), Some(rate.get())).await;
        told.unwrap_or_else(|error| Err(ServiceError::NoAnswer(error.to_string())))
    }

    async fn link(
        &self,
        clock: &SimClock,
        id: LinkId,
        sending: &Option<Arc<Bucket<SimClock>>>,
    ) -> Result<(Link, LetIn), ConnectError> {
        let dial = SimDial {
            network: self.network.clone(),
            connector: Connector::new(&key(KEYS[0])),
            sending: sending.clone(),
        };
        let shared = self.shared.clone();
        let observer = move |event: LinkEvent| shared.note(MOVER, &event);
        Link::connect(dial, clock.clone(), link_limits(), id, self.seed << 40, observer).await
    }

    async fn move_once(
        &self,
        local: RealizeServer<Disks, SimClock>,
        link: &Link,
        id: LinkId,
        (halt, begun): (&Halt, &Begun),
    ) -> Result<MoveReport, MoveError> {
        let local = SimService::within(local).client();
        let remote = SimService::new(Remote(link.clone(), self.shared.clone())).client();
        let (from, to) = match self.direction {
            Direction::Send => (local, remote),
            Direction::Fetch => (remote, local),
        };
        let source = |root: &&str| Source {
            service: from.clone(),
            dir: DirId::new(*root),
            beside_target: false,
            files: None,
        };
        let sources: Vec<_> = self.sources.iter().map(source).collect();
        let target = Target {
            service: to,
            dir: TARGET_ROOT.first().map(|root| DirId::new(*root)),
        };
        let options = MoveOptions {
            limits: self.limits.clone(),
            begun: begun.clone(),
            halt: halt.clone(),
            ..MoveOptions::default()
        };
        let observer = |event: Event<'_>| {
            self.shared.note(MOVER, &event);
            if let Event::Stays(failure) = event {
                self.shared.state().stays.push(failure.clone());
            }
        };
        move_files(&sources, &target, id.run, &options, &observer).await
    }
}
