//! The server of the programs is the largest part of them. What is built to be tested, at an optimisation that shares what is generic,
//! has it compiled once, here, and not in each program.

use futures::future::BoxFuture;
use tarpc::ServerError;

use super::RealizeServer;
use crate::{
    clock::TokioClock,
    fs::os::OsFs,
    service::{RealizeServiceRequest, RealizeServiceResponse},
};

type Answer = BoxFuture<'static, Result<RealizeServiceResponse, ServerError>>;

#[used]
static ANSWER: fn(&RealizeServer<OsFs, TokioClock>, RealizeServiceRequest) -> Answer = RealizeServer::answer;
