//! The services that simulated moves go between: one type, whatever is behind it, so that the mover is compiled once.

use std::rc::Rc;

use futures::{FutureExt, future::LocalBoxFuture};
use realize::{
    server::RealizeServer,
    service::{RealizeServiceClient, RealizeServiceRequest as Request, RealizeServiceResponse as Response},
};
use tarpc::{
    client::{RpcError, stub::Stub},
    context::Context,
};

use crate::{clock::SimClock, fs::Disks};

/// A service in the same process or at the end of a line. Cheap to clone.
#[derive(Clone)]
pub struct SimService(Rc<dyn Calls>);

trait Calls {
    fn call(&self, context: Context, request: Request) -> LocalBoxFuture<'_, Result<Response, RpcError>>;
}

impl<S: Stub<Req = Request, Resp = Response>> Calls for S {
    fn call(&self, context: Context, request: Request) -> LocalBoxFuture<'_, Result<Response, RpcError>> {
        Stub::call(self, context, request).boxed_local()
    }
}

impl SimService {
    /// What `stub` leads to.
    pub fn new(stub: impl Stub<Req = Request, Resp = Response> + 'static) -> Self {
        Self(Rc::new(stub))
    }

    /// The service of a program, called from within it.
    pub fn within(server: RealizeServer<Disks, SimClock>) -> Self {
        Self::new(Within(server))
    }

    /// To call it by.
    pub fn client(self) -> RealizeServiceClient<Self> {
        RealizeServiceClient::from(self)
    }
}

impl Stub for SimService {
    type Req = Request;
    type Resp = Response;

    async fn call(&self, context: Context, request: Request) -> Result<Response, RpcError> {
        self.0.call(context, request).await
    }
}

struct Within(RealizeServer<Disks, SimClock>);

impl Stub for Within {
    type Req = Request;
    type Resp = Response;

    async fn call(&self, _: Context, request: Request) -> Result<Response, RpcError> {
        self.0.answer(request).await.map_err(RpcError::Server)
    }
}
