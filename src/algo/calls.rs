//! How the calls of a service are made.

use std::{future::Future, io::ErrorKind};

use tarpc::client::RpcError;

pub use crate::service::context;
use crate::service::{Answer, ServiceError};

/// The answer of a call; no answer is an error too, and tells nothing of what was done.
pub async fn flat<T>(call: impl Future<Output = Result<Answer<T>, RpcError>>) -> Answer<T> {
    call.await.unwrap_or_else(|error| Err(no_answer(error)))
}

/// What it means that a call has no answer. A link gives its own reason.
pub fn no_answer(error: RpcError) -> ServiceError {
    match error {
        RpcError::Server(reason) if reason.kind == ErrorKind::InvalidData => ServiceError::BadAnswer(reason.detail),
        RpcError::Server(reason) => ServiceError::NoAnswer(reason.detail),
        error => ServiceError::NoAnswer(error.to_string()),
    }
}

/// Results of a batch, one for each of the `count` items that were asked for.
pub fn check_count<T>(results: Vec<T>, count: usize) -> Answer<Vec<T>> {
    if results.len() != count {
        let text = format!("the answer has {} results for {count} items", results.len());
        return Err(ServiceError::BadAnswer(text));
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
