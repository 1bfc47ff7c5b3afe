//! What the calls over links do: which are under way, how many at once, and how long each takes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Shared, now};

/// The calls over the links of a run.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    under_way: BTreeMap<String, usize>,
    /// Most at once.
    pub most: usize,
    /// The one that took longest, and for how long.
    pub slowest: Option<(Duration, String)>,
}

/// A call under way.
pub(super) struct UnderWay {
    shared: Arc<Shared>,
    name: String,
    began: Duration,
}

impl Calls {
    /// The kinds of call that are under way; `connecting` when there is none.
    pub(super) fn under_way(&self) -> Vec<String> {
        let names: Vec<_> = self.under_way.keys().cloned().collect();
        match names.is_empty() {
            true => vec!["connecting".into()],
            false => names,
        }
    }
}

impl UnderWay {
    /// One begins. It ends when this is dropped.
    pub(super) fn new(shared: &Arc<Shared>, name: &str) -> Self {
        let name = name.rsplit('.').next().unwrap_or(name).to_owned();
        let mut state = shared.state();
        *state.calls.under_way.entry(name.clone()).or_default() += 1;
        state.calls.most = state.calls.most.max(state.calls.under_way.values().sum());
        drop(state);
        let (shared, began) = (shared.clone(), now());
        Self { shared, name, began }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let took = now().saturating_sub(self.began);
        let mut state = self.shared.state();
        if let Some(count) = state.calls.under_way.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                state.calls.under_way.remove(&self.name);
            }
        }
        if state.calls.slowest.as_ref().is_none_or(|(slowest, _)| *slowest < took) {
            state.calls.slowest = Some((took, self.name.clone()));
        }
    }
}
