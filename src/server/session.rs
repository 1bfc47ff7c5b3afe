//! The session of a peer: what it has claimed and open, what it may use, and its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Semaphore;

use super::{Access, RealizeServer, Roots, Turns, loaded::Loaded, open::Open, roots::Served};
use crate::{
    clock::Clock,
    fs::Fs,
    service::{Answer, DirId, Handle, Right, RunId, ServiceError},
    store::{Claimed, Store, Walk},
    throttle::Bucket,
};

/// How many finished files may be being closed while others are dealt with.
const CLOSING_AT_ONCE: usize = 4;

pub(super) struct Session<F: Fs, C: Clock> {
    /// One for each job at work.
    pub turns: Turns,
    /// What is sent to the run is taken from it, where there is a connection.
    pub sending: Option<Arc<Bucket<C>>>,
    /// Whether no more jobs are begun.
    pub is_stopped: AtomicBool,
    pub roots: Arc<Roots<F, C>>,
    pub access: Arc<dyn Access>,
    /// Held while directories are made: files that came behind them wait for it.
    pub making_dirs: tokio::sync::Mutex<()>,
    /// Held by each finished file that is being closed.
    pub closing: Arc<Semaphore>,
    /// Held, to read, by each claim that is being made.
    pub claiming: Arc<tokio::sync::RwLock<()>>,
    state: Mutex<State<F>>,
}

pub(super) struct State<F: Fs> {
    /// Whether nothing is claimed any more.
    is_over: bool,
    pub run: Option<RunId>,
    pub next_handle: u64,
    pub open: BTreeMap<Handle, (DirId, Open<F>)>,
    /// What was claimed and not given back, of each root in this order: one may be source and target.
    pub claims: BTreeMap<DirId, Vec<Arc<Claimed<F>>>>,
    /// Roots below configured ones, open from their claims on.
    pub below: BTreeMap<DirId, Store<F>>,
    /// Where the last page of each root ended.
    pub walks: BTreeMap<DirId, Walk<F>>,
    /// What is known of the basis of one source file.
    pub loaded: Option<Loaded>,
    /// Configured directories of which a call was about.
    used: BTreeSet<String>,
}

impl<F: Fs> Default for State<F> {
    fn default() -> Self {
        Self {
            is_over: false,
            run: None,
            next_handle: 0,
            open: BTreeMap::new(),
            claims: BTreeMap::new(),
            below: BTreeMap::new(),
            walks: BTreeMap::new(),
            loaded: None,
            used: BTreeSet::new(),
        }
    }
}

impl<F: Fs, C: Clock> RealizeServer<F, C> {
    pub(super) fn with(
        roots: Arc<Roots<F, C>>,
        access: Arc<dyn Access>,
        run: Option<RunId>,
        turns: Turns,
        sending: Option<Arc<Bucket<C>>>,
    ) -> Self {
        let state = State {
            run,
            ..State::default()
        };
        Self {
            session: Arc::new(Session {
                turns,
                sending,
                is_stopped: AtomicBool::new(false),
                roots,
                access,
                closing: Arc::new(Semaphore::new(CLOSING_AT_ONCE)),
                claiming: Arc::default(),
                making_dirs: tokio::sync::Mutex::default(),
                state: Mutex::new(state),
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<F>> {
        // Nothing panics while it is held.
        self.session.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins no more jobs for calls that are under way: they fail.
    pub fn stop(&self) {
        self.session.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Whether a call was about one of these configured directories.
    pub fn has_used(&self, names: &BTreeSet<String>) -> bool {
        !self.state().used.is_disjoint(names)
    }

    /// Takes the tokens off the roots that are claimed, whatever is still at work: for a process that is about to end. What is open, and the
    /// locks, end with it.
    pub async fn leave(&self) {
        self.stop();
        // Claims that are being made are waited for.
        let _claimed = self.session.claiming.write().await;
        let claims = self.state().claims.values().flatten().cloned().collect();
        self.release_all(claims).await;
    }

    /// Ends the session: begins no more jobs, closes what is open and gives back what is claimed, once no job is at it.
    pub async fn end(&self) {
        self.stop();
        let (open, claims) = {
            let mut state = self.state();
            state.is_over = true;
            state.walks.clear();
            state.loaded = None;
            (std::mem::take(&mut state.open), std::mem::take(&mut state.claims))
        };
        let handles = open.into_values().map(|(_, open)| open).collect();
        // Nobody is told: what could not be done is left to the next claim.
        self.close_all(handles).await.ok();
        self.release_all(claims.into_values().flatten().collect()).await;
    }

    async fn release_all(&self, claims: Vec<Arc<Claimed<F>>>) {
        for claimed in claims {
            let releasing = async move { claimed.release().await };
            let _released = self.session.roots.fs.offload(releasing).await;
        }
    }

    /// Keeps what was claimed until it is given back.
    pub(super) fn take_claim(&self, dir: DirId, claimed: Arc<Claimed<F>>) -> Answer<()> {
        const CLAIMS_MAX: usize = 4096;
        let mut state = self.state();
        if state.is_over {
            return Err(ServiceError::Internal);
        }
        if state.claims.values().map(Vec::len).sum::<usize>() >= CLAIMS_MAX {
            return Err(ServiceError::Busy("too many directories are claimed".into()));
        }
        state.claims.entry(dir).or_default().push(claimed);
        Ok(())
    }

    /// The one place where the rights of a call are checked: what is served as `name`, for who has this right there. Both are those of one
    /// moment; whoever takes the directory away after it finds that it was used.
    fn served(&self, name: &str, right: Right) -> Answer<Arc<Served<F>>> {
        let all = self.session.roots.served();
        let found = all.get(name);
        if !self.session.access.rights(name).has(right) {
            return Err(found.map_or(ServiceError::NotFound, |_| ServiceError::Denied(right)));
        }
        let served = found.ok_or(ServiceError::NotFound)?.clone();
        let mut state = self.state();
        if !state.used.contains(name) {
            state.used.insert(name.to_owned());
        }
        Ok(served)
    }

    pub(super) fn allow(&self, dir: &DirId, right: Right) -> Answer<()> {
        self.served(&dir.name, right).map(drop)
    }

    /// The store of a call's directory, for who may do this.
    pub(super) fn store(&self, dir: &DirId, right: Right) -> Answer<Store<F>> {
        let served = self.served(&dir.name, right)?;
        if dir.below.is_root() {
            return Ok(served.store.clone());
        }
        let below = self.state().below.get(dir).cloned();
        below.ok_or(ServiceError::NotFound)
    }

    /// Fails when the path of a configured directory leads elsewhere by now: a disk was mounted over it, or is not any more, or it was made
    /// anew. What was moved would not be where its owner looks for it.
    pub(super) async fn prove_in_place(&self, name: &str, right: Right) -> Answer<()> {
        let served = self.served(name, right)?;
        let fs = self.session.roots.fs.clone();
        self.job(async move {
            match fs.open_root(&served.path).await {
                Ok(there) => served.store.prove_same_root(&there).await,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(ServiceError::Replaced),
                Err(error) => Err(ServiceError::io("open the directory", &error)),
            }
        })
        .await
    }

    /// Opens a root below a configured one, for as long as the session.
    pub(super) async fn open_below(&self, dir: &DirId, right: Right, make: bool) -> Answer<()> {
        const ROOTS_MAX: usize = 64;
        let served = self.served(&dir.name, right)?;
        let below = dir.below.clone();
        let store = self.job(async move { served.store.below(&below, make).await }).await?;
        let mut state = self.state();
        if state.below.len() >= ROOTS_MAX && !state.below.contains_key(dir) {
            return Err(ServiceError::Busy("too many directories are claimed".into()));
        }
        state.below.insert(dir.clone(), store);
        Ok(())
    }
}
