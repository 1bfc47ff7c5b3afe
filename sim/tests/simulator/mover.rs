//! What the mover asks the target for, and when: moves between two disks of one machine, the target's service behind a wire that notes
//! each call.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use realize::{
    algo::{Event, MoveError, MoveOptions, MoveReport, Source, Stop, Target, move_files},
    clock::timeout,
    limits::Limits,
    plan::Nesting,
    server::{RealizeServer, Roots},
    service::{
        DirId, Finished, Handle, OpenFor, RealizeServiceRequest as Request, RealizeServiceResponse as Response, RunId,
    },
};
use realize_sim::{
    clock::SimClock,
    fs::{Content, Disk, Disks, Machine},
    service::SimService,
    world::{Body, World, process},
};
use tarpc::{
    RequestName,
    client::{RpcError, stub::Stub},
};
use tokio::sync::Semaphore;

/// What happens on the way to the target.
struct Way {
    /// The calls, in their order.
    calls: Mutex<Vec<String>>,
    /// Done before each call.
    before: Box<dyn Fn(&Request) + Send + Sync>,
    /// The file with this name, once it is open, is sent only with permits of `slow`.
    slow_name: &'static str,
    slow_handle: Mutex<Option<Handle>>,
    slow: Semaphore,
    /// Which files chunks were sent of.
    sent: Mutex<Vec<Handle>>,
}

#[derive(Clone)]
struct Wire {
    service: SimService,
    way: Arc<Way>,
}

impl Stub for Wire {
    type Req = Request;
    type Resp = Response;

    async fn call(&self, context: tarpc::context::Context, request: Request) -> Result<Response, RpcError> {
        let name = request.name();
        let name = name.rsplit('.').next().unwrap();
        self.way.calls.lock().unwrap().push(name.to_owned());
        (self.way.before)(&request);
        if let Request::Send { handle, .. } = &request {
            if *self.way.slow_handle.lock().unwrap() == Some(*handle) {
                self.way.slow.acquire().await.unwrap().forget();
            }
            self.way.sent.lock().unwrap().push(*handle);
            realize::clock::Clock::sleep(&SimClock::on(&Machine::new(0)), Duration::from_millis(10)).await;
        }
        let is_slow = matches!(&request, Request::Open { path, open_for: OpenFor::Write { .. }, .. }
            if path.as_bytes() == self.way.slow_name.as_bytes());
        let response = self.service.call(context, request).await;
        if let (true, Ok(Response::Open(Ok(opened)))) = (is_slow, &response) {
            *self.way.slow_handle.lock().unwrap() = Some(opened.held.handle);
        }
        response
    }
}

struct Ends {
    source: Disk,
    target: Disk,
    way: Way,
}

impl Ends {
    /// An empty target, and `files` at the source.
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let machine = Machine::new(1);
        let (source, target) = (machine.disk(1), machine.disk(2));
        source.mkdir_all("source/d").unwrap();
        target.mkdir_all("target").unwrap();
        for (path, data) in files {
            source.create(format!("source/{path}"), data).unwrap();
        }
        let way = Way {
            calls: Mutex::default(),
            before: Box::new(|_| {}),
            slow_name: "",
            slow_handle: Mutex::default(),
            slow: Semaphore::new(0),
            sent: Mutex::default(),
        };
        Self { source, target, way }
    }

    fn settle(&self) {
        self.source.settle();
        self.target.settle();
    }

    /// Moves everything; `on_moved` is told each path that was.
    fn move_all(self, limits: Limits, on_moved: impl Fn(&Way, &str)) -> (Result<MoveReport, MoveError>, Arc<Way>) {
        self.settle();
        let way = Arc::new(self.way);
        let result = process(async {
            let clock = SimClock::on(&Machine::new(0));
            let [sources, targets] = [&self.source, &self.target].map(|disk| Disks::of(disk, disk));
            let serve = async |fs, name: &str| {
                let roots = Roots::new(fs, clock.clone(), limits.clone(), [name.len() as u8; 16]);
                let path = format!("/{name}");
                roots.add(name, Path::new(&path), false).await.unwrap();
                SimService::within(RealizeServer::new(Arc::new(roots)))
            };
            let source = Source {
                service: serve(sources, "source").await.client(),
                dir: DirId::new("source"),
                beside_target: true,
                files: None,
            };
            let wire = Wire {
                service: serve(targets, "target").await,
                way: way.clone(),
            };
            let target = Target {
                service: SimService::new(wire).client(),
                dir: Some(DirId::new("target")),
            };
            let options = MoveOptions {
                limits: limits.clone(),
                ..MoveOptions::default()
            };
            let observer = |event: Event<'_>| {
                if let Event::Moved { path, .. } = event {
                    on_moved(&way, std::str::from_utf8(path.as_bytes()).unwrap());
                }
            };
            let sources = [source];
            let moved = move_files(&sources, &target, RunId([7; 16]), &options, &observer);
            timeout(&clock, Duration::from_secs(600), moved)
                .await
                .expect("nothing waits for ever")
        });
        (result, way)
    }
}

fn count(way: &Way, name: &str) -> usize {
    way.calls.lock().unwrap().iter().filter(|call| **call == name).count()
}

fn few_at_once() -> Limits {
    Limits {
        page_entries: 2,
        batch_files: 2,
        ..Limits::default()
    }
}

#[test]
fn an_empty_target_is_asked_for_nothing() {
    let files = ["a", "d/b", "d/c", "e"].map(|path| (path, path.into()));
    let ends = Ends::new(&files);
    // Ours, as an earlier run may have left it.
    ends.target.create("target/.a.realize-part", b"part").unwrap();
    let (moved, way) = ends.move_all(few_at_once(), |_, _| {});
    assert!(moved.unwrap().is_complete());
    assert_eq!((count(&way, "stat"), count(&way, "sweep")), (0, 0));
}

#[test]
fn what_a_target_holds_is_asked_for_but_not_below_what_was_made() {
    // Pages: d and d/1; d/2 and d/3; d/4 and e. Only the first and the last have to be asked for.
    let files = ["d/1", "d/2", "d/3", "d/4", "e"].map(|path| (path, path.into()));
    let ends = Ends::new(&files);
    ends.target.create("target/e", b"older").unwrap();
    let target = ends.target.clone();
    let (moved, way) = ends.move_all(few_at_once(), |_, _| {});
    assert!(moved.unwrap().is_complete());
    assert_eq!(count(&way, "stat"), 2);
    assert_eq!(target.read("target/e").unwrap(), b"e");
}

#[test]
fn what_comes_into_an_empty_target_meanwhile_is_not_replaced() {
    let files = ["a", "d/b", "e"].map(|path| (path, path.into()));
    let mut ends = Ends::new(&files);
    let (source, target) = (ends.source.clone(), ends.target.clone());
    let other = target.clone();
    ends.way.before = Box::new(move |request| {
        if matches!(request, Request::MakeDirs { .. }) {
            other.mkdir_all("target/d").unwrap();
            for path in ["target/a", "target/d/b"] {
                other.create(path, b"somebody's").unwrap();
            }
        }
    });
    let (moved, _) = ends.move_all(Limits::default(), |_, _| {});
    let report = moved.unwrap();
    assert_eq!((report.copied, report.stays), (1, 2), "{report:?}");
    for path in ["a", "d/b"] {
        assert_eq!(target.read(format!("target/{path}")).unwrap(), b"somebody's");
        assert_eq!(source.read(format!("source/{path}")).unwrap(), path.as_bytes());
    }
}

#[test]
fn the_target_is_given_back_once_and_on_each_way_out() {
    let (moved, way) = Ends::new(&[("a", b"a".to_vec())]).move_all(Limits::default(), |_, _| {});
    assert!(moved.unwrap().is_complete());
    assert_eq!(count(&way, "release"), 1);
    // A target that holds the source's mark is not moved into.
    let ends = Ends::new(&[("a", b"a".to_vec())]);
    let name = format!("target/.realize-token.{}.source", RunId([7; 16]));
    ends.target.create(name, b"of somebody, so it is not removed").unwrap();
    let (moved, way) = ends.move_all(Limits::default(), |_, _| {});
    let stopped = Some(Stop::Move(MoveError::Nested(None, Nesting::SourceInside)));
    assert_eq!((moved.unwrap().stopped, count(&way, "release")), (stopped, 1));
}

#[test]
fn one_slow_file_does_not_hold_up_the_others() {
    const MIB: usize = 1 << 20;
    let mut ends = Ends::new(&[("a slow one", vec![1; 40 * MIB]), ("another", vec![2; 5 * MIB])]);
    ends.way.slow_name = "a slow one";
    // Nothing of the slow one arrives before the other is there, though it came first and has the whole window.
    let (moved, way) = ends.move_all(Limits::default(), |way, path| {
        if path == "another" {
            way.slow.add_permits(1000);
        }
    });
    assert!(moved.unwrap().is_complete());
    let slow = way.slow_handle.lock().unwrap().unwrap();
    let sent = way.sent.lock().unwrap();
    assert_eq!(sent.iter().position(|handle| *handle == slow), Some(5));
}

#[test]
fn two_large_files_share_the_window() {
    const CHUNKS: usize = 96;
    let files = ["a", "b"].map(|name| (name, vec![1; CHUNKS << 20]));
    let (moved, way) = Ends::new(&files).move_all(Limits::default(), |_, _| {});
    assert!(moved.unwrap().is_complete());
    let sent = way.sent.lock().unwrap();
    assert_eq!(sent.len(), 2 * CHUNKS);
    let first_ends =
        (0..sent.len()).find(|at| sent[..=*at].iter().filter(|handle| **handle == sent[0]).count() == CHUNKS);
    let of_other = first_ends.unwrap() + 1 - CHUNKS;
    // The first may be ahead by the window, which it had for itself.
    assert!(of_other >= CHUNKS - 34, "{of_other} chunks of the other");
}

/// A wire on which what finishes is long at it, and tells how much it has read back.
#[derive(Clone)]
struct LongWire(SimService, Arc<Mutex<u64>>, Tells);

/// How many chunks were read back, as the answer of this number tells.
type Tells = fn(u64) -> u64;

/// So many answers say that the end is still to come.
const LONG: u64 = 1000;

impl Stub for LongWire {
    type Req = Request;
    type Resp = Response;

    async fn call(&self, context: tarpc::context::Context, request: Request) -> Result<Response, RpcError> {
        if let Request::Finish { .. } = &request {
            let mut answers = self.1.lock().unwrap();
            *answers += 1;
            if *answers < LONG {
                let read_back = self.2(*answers);
                return Ok(Response::Finish(Ok(Finished::Working { read_back })));
            }
        }
        self.0.call(context, request).await
    }
}

/// A file of 300 GB is read back for half an hour.
#[test]
fn what_finishes_may_take_as_long_as_it_gets_on() {
    const CHUNKS: u64 = 30;
    let patience = Limits::default().finish_answers as u64;
    let told: [(Tells, bool, u64); 4] = [
        // A chunk in every forty answers.
        (|answers| answers / 40, true, LONG),
        (|_| 0, false, patience),
        (|_| 5, false, patience + 1),
        // More than there are, twice over.
        (|answers| answers, false, 2 * CHUNKS + patience),
    ];
    for (read_back, is_waited_for, asked) in told {
        let body = Body::File(Content::from(&vec![7; (CHUNKS as usize) << 20][..]));
        let world = World::of(1, false, vec![("film", body, None)]);
        let answers = Arc::new(Mutex::new(0));
        let ended = world.move_through(|service| SimService::new(LongWire(service, answers.clone(), read_back)));
        let report = ended.result.unwrap().unwrap();
        assert_eq!((report.is_complete(), *answers.lock().unwrap()), (is_waited_for, asked));
        assert_eq!(world.source.read("source/film").is_ok(), !is_waited_for);
    }
}
