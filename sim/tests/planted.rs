//! Each planted bug is caught by what checks the moves, and by which property. Built by `tests/planted`; empty otherwise.
#![cfg(realize_planted)]

use std::sync::Arc;

use bytes::Bytes;
use realize::{
    planted::{Bug, plant},
    service::{Content, RealizeServiceRequest, RealizeServiceResponse},
};
use realize_sim::{
    check::{Checker, Property},
    fs::{Act, At, Fault, Kind, Op, Refusals},
    world::{Large, SimService, World, at_source},
};
use rustix::io::Errno;
use tarpc::client::{RpcError, stub::Stub};

/// A wire that turns over a bit in every small file.
#[derive(Clone)]
struct BadWire(SimService);

impl Stub for BadWire {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(&self, context: tarpc::context::Context, mut request: Self::Req) -> Result<Self::Resp, RpcError> {
        if let RealizeServiceRequest::Put { files, .. } = &mut request {
            for file in &mut files.0 {
                if let Content::File { data, .. } = &mut file.content
                    && !data.is_empty()
                {
                    let mut bytes = data.to_vec();
                    bytes[0] ^= 1;
                    *data = Bytes::from(bytes);
                }
            }
        }
        self.0.call(context, request).await
    }
}

/// Moves with whatever makes `bug` show; the properties that were violated.
fn violated(bug: Bug) -> Vec<Property> {
    let (world, checker) = (World::small(1, false, Large::OneChunk), Arc::new(Checker::default()));
    world.watch(&checker);
    match bug {
        Bug::SkipDigest => {
            world.move_through(BadWire);
        }
        Bug::NoSourceCheck => {
            // Somebody puts another file under the name once it has been read; no lease tells of that.
            world.source.refuse(Refusals {
                lease: Some(Errno::INVAL),
                ..Refusals::default()
            });
            let replaced = at_source(&realize::model::RelPath::new("d/b").unwrap());
            let act = {
                let replaced = replaced.clone();
                move |machine: &realize_sim::fs::Machine| {
                    machine
                        .disk(realize_sim::world::SOURCE)
                        .replace(replaced.as_bytes(), b"somebody's new one")
                        .unwrap()
                }
            };
            let at = At::Call {
                op: Op::Rename,
                path: Some(replaced),
                nth: 0,
            };
            world.machine.inject(Fault {
                at,
                kind: Kind::Act(Act(Arc::new(act))),
            });
            world.move_all();
        }
        Bug::DeleteBeforeSync | Bug::NoDirectorySync | Bug::AcknowledgeBeforeRename => {
            world.move_all();
        }
    }
    let mut properties: Vec<_> = checker
        .violations()
        .into_iter()
        .map(|violation| violation.property)
        .collect();
    properties.sort_unstable();
    properties.dedup();
    properties
}

#[test]
fn without_a_bug_nothing_is_violated() {
    plant(None);
    for bug in Bug::ALL {
        assert_eq!(violated(bug), vec![], "the faults for {bug:?} alone");
    }
}

#[test]
fn each_bug_is_caught() {
    for (bug, property) in [
        (Bug::DeleteBeforeSync, Property::Law),
        (Bug::NoDirectorySync, Property::Law),
        (Bug::AcknowledgeBeforeRename, Property::Law),
        (Bug::SkipDigest, Property::WholeFinals),
        (Bug::NoSourceCheck, Property::Law),
    ] {
        plant(Some(bug));
        let caught = violated(bug);
        plant(None);
        println!("{bug:?}: {caught:?}");
        assert!(caught.contains(&property), "{bug:?} was seen as {caught:?}");
    }
}
