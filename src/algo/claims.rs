//! Taking both ends for a run, and giving them back.

use super::{
    MoveError, MoveOptions, ServiceStub, Side, Source, Target,
    calls::{self, flat},
};
use crate::{
    model::{Entry, Kind, Name, Version},
    plan::{self, Nesting},
    service::{Claim, Role, RunId, SERVICE_VERSION, ServiceError},
};

/// What is known once both sides are claimed.
pub struct Ground {
    /// Of each source.
    pub source_claims: Vec<Option<Claim>>,
    /// Of the target; `None` when a dry run has none yet.
    pub target_claim: Option<Claim>,
    /// Owner and group of files at the target.
    pub target_owner: (u32, u32),
    /// Whether a rename may do, for each source.
    pub may_rename: Vec<bool>,
    /// Whether all are on one host, where device and inode tell a directory.
    pub one_host: bool,
    /// For each source, whether its root is the target's.
    pub same_dir: Vec<bool>,
}

impl Ground {
    /// Whether `token` marks a source of this run.
    pub fn is_source_token(&self, token: &Name) -> bool {
        self.source_claims
            .iter()
            .flatten()
            .any(|claim| claim.token.as_ref() == Some(token))
    }

    /// Whether every source is the target's own directory, of which single files go to other names.
    pub fn all_in_target(&self) -> bool {
        self.same_dir.iter().all(|same| *same)
    }

    /// Whether `token` marks the target of this run.
    pub fn is_target_token(&self, token: &Name) -> bool {
        self.target_claim
            .as_ref()
            .is_some_and(|claim| claim.token.as_ref() == Some(token))
    }

    /// Whether `entry` of a source is the root of the target; told only on one host.
    pub fn is_target_root(&self, entry: &Entry) -> bool {
        let is_it = |root: &Version| (root.dev, root.ino) == (entry.version.dev, entry.version.ino);
        self.one_host
            && entry.kind == Kind::Dir
            && self.target_claim.as_ref().is_some_and(|claim| is_it(&claim.version))
    }
}

/// Both ends, taken or not.
pub struct Claims {
    /// What is to be given back.
    pub taken: Taken,
    /// What is known by now.
    pub result: Result<Ground, MoveError>,
}

/// What is to be given back.
#[derive(Default)]
pub struct Taken {
    sources: usize,
    target: bool,
}

impl Claims {
    /// Says hello to both sides and claims them.
    pub async fn take<S: ServiceStub, T: ServiceStub>(
        sources: &[Source<S>],
        target: &Target<T>,
        run: RunId,
        options: &MoveOptions,
    ) -> Self {
        let mut taken = Taken::default();
        let result = taken.take(sources, target, run, options).await;
        Self { taken, result }
    }
}

impl Taken {
    async fn take<S: ServiceStub, T: ServiceStub>(
        &mut self,
        sources: &[Source<S>],
        target: &Target<T>,
        run: RunId,
        options: &MoveOptions,
    ) -> Result<Ground, MoveError> {
        let at_target = |error| MoveError::Side(Side::Target, error);
        let hello = flat(target.service.hello(calls::context(), SERVICE_VERSION, run))
            .await
            .map_err(at_target)?;
        let mut servers = Vec::new();
        for source in sources {
            let hello = flat(source.service.hello(calls::context(), SERVICE_VERSION, run)).await;
            servers.push(hello.map_err(|error| MoveError::Side(Side::Source, error))?.server);
        }
        let mut ground = Ground {
            source_claims: vec![None; sources.len()],
            target_claim: None,
            target_owner: (hello.uid, hello.gid),
            may_rename: vec![false; sources.len()],
            same_dir: vec![false; sources.len()],
            one_host: servers.iter().all(|server| *server == hello.server),
        };
        for (source, claim) in sources.iter().zip(&mut ground.source_claims) {
            let role = match &source.files {
                _ if options.dry_run => Role::Looked,
                Some(_) => Role::SourceOfFiles,
                None => Role::Source,
            };
            let claimed = flat(source.service.claim(calls::context(), source.dir.clone(), role)).await;
            *claim = Some(claimed.map_err(|error| match error {
                ServiceError::Busy(holder) => MoveError::Locked(holder),
                error => MoveError::Side(Side::Source, error),
            })?);
            self.sources += 1;
        }
        let Some(dir) = target.dir.clone() else {
            let missing = MoveError::Side(Side::Target, ServiceError::NotFound);
            return if options.dry_run { Ok(ground) } else { Err(missing) };
        };
        let role = if options.dry_run { Role::Looked } else { Role::Target };
        let target_claim = flat(target.service.claim(calls::context(), dir, role))
            .await
            .map_err(at_target)?;
        self.target = true;
        for (index, claim) in ground.source_claims.iter().enumerate() {
            let Some(claim) = claim else { continue };
            let one_server = servers[index] == hello.server;
            if one_server {
                let nesting = plan::nesting(&claim.places, &target_claim.places);
                if sources[index].files.is_none() && nesting != Nesting::Apart {
                    return Err(MoveError::Nested(nesting));
                }
                ground.same_dir[index] = nesting == Nesting::Same;
            }
            ground.same_dir[index] |= one_server && claim.version.is_same_inode(&target_claim.version);
            let device = |claim: &Claim| claim.places.first().map(|place| place.device);
            let one_device = device(claim).is_some() && device(claim) == device(&target_claim);
            ground.may_rename[index] = one_server && one_device && !options.copy;
        }
        ground.target_claim = Some(target_claim);
        Ok(ground)
    }

    /// Gives back what was taken.
    pub async fn release<S: ServiceStub, T: ServiceStub>(&self, sources: &[Source<S>], target: &Target<T>) {
        // A mark that stays is removed by the next run.
        if self.target
            && let Some(dir) = target.dir.clone()
        {
            flat(target.service.release(calls::context(), dir)).await.ok();
        }
        for source in &sources[..self.sources] {
            flat(source.service.release(calls::context(), source.dir.clone()))
                .await
                .ok();
        }
    }
}
