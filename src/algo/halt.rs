//! What ends a move in time.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use futures::future::{Either, select};
use tokio::sync::Notify;

/// Tells a move that its time runs out. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Halt(Arc<Inside>);

#[derive(Debug, Default)]
struct Inside {
    /// One of those below.
    stage: AtomicU8,
    /// Told when it is over. (Not a `watch` channel: that wakes who waits in an order by chance.)
    over: Notify,
}

/// Nothing more is begun; files under way go on.
const NOTHING_NEW: u8 = 1;

/// Large files are left where they are, to be gone on with. What was brought over whole comes to its end.
const OVER: u8 = 2;

impl Halt {
    /// From now on nothing is begun any more.
    pub fn begin_nothing(&self) {
        self.0.stage.fetch_max(NOTHING_NEW, Ordering::SeqCst);
    }

    /// The time is over: only what has been brought over whole comes to its end.
    pub fn end(&self) {
        self.0.stage.store(OVER, Ordering::SeqCst);
        self.0.over.notify_waiters();
    }

    /// Whether something may be begun.
    pub(super) fn may_begin(&self) -> bool {
        self.0.stage.load(Ordering::SeqCst) < NOTHING_NEW
    }

    /// What comes of `work`; `None` when the time is over before, and `work` is dropped.
    pub(super) async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let over = async {
            let told = self.0.over.notified();
            // Told from its making on.
            if self.0.stage.load(Ordering::SeqCst) < OVER {
                told.await;
            }
        };
        match select(std::pin::pin!(work), std::pin::pin!(over)).await {
            Either::Left((value, _)) => Some(value),
            Either::Right(_) => None,
        }
    }
}
