//! How the calls of a service are made.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tarpc::{client::RpcError, context::Context};

use crate::service::{Answer, ServiceError};

/// The context of a call. Its deadline is a year away: limits are kept on our own clock, and a deadline
/// on tarpc's would be one more way to fail.
pub fn context() -> Context {
    let mut context = tarpc::context::current();
    #[expect(clippy::disallowed_methods, reason = "tarpc wants one; nothing waits for it")]
    let now = Instant::now();
    context.deadline = now + Duration::from_secs(365 * 24 * 3600);
    context
}

/// The answer of a call; no answer is an error too, and tells nothing of what was done.
pub async fn flat<T>(call: impl Future<Output = Result<Answer<T>, RpcError>>) -> Answer<T> {
    call.await
        .unwrap_or_else(|error| Err(ServiceError::NoAnswer(error.to_string())))
}

/// Results of a batch, one for each of the `count` items that were asked for.
pub fn check_count<T>(results: Vec<T>, count: usize) -> Answer<Vec<T>> {
    if results.len() != count {
        let text = format!("the answer has {} results for {count} items", results.len());
        return Err(ServiceError::NoAnswer(text));
    }
    Ok(results)
}

/// The results of a batch, each item with its own; when the call as a whole failed, all items with that.
pub fn for_each<T>(results: Answer<Vec<Answer<T>>>, count: usize) -> Vec<Answer<T>> {
    match results.and_then(|results| check_count(results, count)) {
        Ok(results) => results,
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    }
}
