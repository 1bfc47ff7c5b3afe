//! Taking both ends for a run, and giving them back.

use std::{
    cell::Cell,
    sync::{Arc, OnceLock},
};

use futures::future::{try_join, try_join_all};

use super::{
    MoveError, MoveOptions, ServiceStub, Side, Source, Target,
    calls::{self, flat},
};
use crate::{
    model::{Entry, Kind, Name, Version},
    plan::{self, Nesting},
    service::{Claim, DirId, Hello, Right, Role, RunId, SERVICE_VERSION, ServiceError},
};

/// What the tries of one move know of the first that had its claims. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Begun(Arc<OnceLock<Vec<(u64, u64)>>>);

impl Begun {
    /// Whether there was one before. Fails when a source is another directory by now: what is not there has not been moved from it, then.
    fn is_again(&self, claims: &[Claim]) -> Result<bool, MoveError> {
        // Device and inode.
        let roots: Vec<_> = claims
            .iter()
            .map(|claim| (claim.version.dev, claim.version.ino))
            .collect();
        let Err(roots) = self.0.set(roots) else {
            return Ok(false);
        };
        let before = self.0.get().into_iter().flatten();
        match before.zip(&roots).position(|(before, now)| before != now) {
            Some(index) => Err(MoveError::Another(index)),
            None => Ok(true),
        }
    }
}

/// What is known once both sides are claimed.
pub struct Ground {
    /// Whether the move has begun before: a file that was named and is gone has been moved.
    pub is_again: bool,
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

/// What is to be given back: whatever may have been taken.
#[derive(Default)]
pub struct Taken {
    sources: usize,
    target: Cell<bool>,
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
        let hello_to_target = async {
            let hello = flat(target.service.hello(calls::context(), SERVICE_VERSION, run)).await;
            hello.map_err(|error| MoveError::Side(Side::Target, error))
        };
        let hellos_to_sources = try_join_all(sources.iter().enumerate().map(|(index, source)| async move {
            let hello = flat(source.service.hello(calls::context(), SERVICE_VERSION, run)).await;
            hello.map_err(|error| MoveError::Side(Side::Source(index), error))
        }));
        let claims = async {
            // No claim waits for the answer of hello: a daemon has the run from the connection. A service in this process has it from
            // hello, which it has dealt with once this was polled, before any claim is made.
            let (hellos, source_claims) = try_join(hellos_to_sources, self.claim_sources(sources, options)).await?;
            // What could not leave is not copied either.
            for (index, (hello, source)) in hellos.iter().zip(sources).enumerate() {
                let needed = [Some(Right::Read), (!options.copy).then_some(Right::Delete)];
                check_rights(hello, &source.dir, needed.into_iter().flatten(), Side::Source(index))?;
            }
            // Only now: what marks the sources is looked for in the target.
            Ok((hellos, source_claims, self.claim_target(target, options).await?))
        };
        let (hello, (hellos, source_claims, target_claim)) = try_join(hello_to_target, claims).await?;
        if let Some(dir) = &target.dir {
            // A claim that only looks takes less.
            check_rights(&hello, dir, [Right::Write], Side::Target)?;
        }
        let is_again = options.begun.is_again(&source_claims)?;
        let servers: Vec<_> = hellos.into_iter().map(|hello| hello.server).collect();
        let mut ground = Ground {
            is_again,
            source_claims: source_claims.into_iter().map(Some).collect(),
            target_claim: None,
            target_owner: (hello.uid, hello.gid),
            may_rename: vec![false; sources.len()],
            same_dir: vec![false; sources.len()],
            one_host: servers.iter().all(|server| *server == hello.server),
        };
        let Some(target_claim) = target_claim else {
            return Ok(ground);
        };
        for (index, claim) in ground.source_claims.iter().enumerate() {
            let Some(claim) = claim else { continue };
            let one_server = servers[index] == hello.server;
            if one_server {
                let nesting = plan::nesting(&claim.places, &target_claim.places);
                if sources[index].files.is_none() && nesting != Nesting::Apart {
                    return Err(MoveError::Nested(Some(index), nesting));
                }
                ground.same_dir[index] = nesting == Nesting::Same;
            }
            ground.same_dir[index] |= one_server && claim.version.is_same_inode(&target_claim.version);
            let device = |claim: &Claim| claim.places.first().map(|place| place.device);
            let one_device = device(claim).is_some() && device(claim) == device(&target_claim);
            // What a service says of itself is not enough: the target would rename other files of its own.
            ground.may_rename[index] = sources[index].beside_target && one_server && one_device && !options.copy;
        }
        ground.target_claim = Some(target_claim);
        Ok(ground)
    }

    /// One after the other: several may be files of one directory, which has one mark.
    async fn claim_sources<S: ServiceStub>(
        &mut self,
        sources: &[Source<S>],
        options: &MoveOptions,
    ) -> Result<Vec<Claim>, MoveError> {
        let mut claims = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            let role = match &source.files {
                _ if options.dry_run => Role::Looked,
                Some(_) => Role::SourceOfFiles,
                None => Role::Source,
            };
            // Whatever is answered, or not waited for: to give back what was not taken does nothing.
            self.sources += 1;
            let claimed = flat(source.service.claim(calls::context(), source.dir.clone(), role)).await;
            if let Err(ServiceError::NoAnswer(_)) = claimed {
                // Who does not answer is not asked to take it back either: that ends with the connection.
                self.sources -= 1;
            }
            claims.push(claimed.map_err(|error| match error {
                ServiceError::Busy(holder) => MoveError::Locked(index, holder),
                error => MoveError::Side(Side::Source(index), error),
            })?);
        }
        Ok(claims)
    }

    /// `None` when a dry run has no target yet.
    async fn claim_target<T: ServiceStub>(
        &mut self,
        target: &Target<T>,
        options: &MoveOptions,
    ) -> Result<Option<Claim>, MoveError> {
        let at_target = |error| MoveError::Side(Side::Target, error);
        let Some(dir) = target.dir.clone() else {
            let missing = at_target(ServiceError::NotFound);
            return if options.dry_run { Ok(None) } else { Err(missing) };
        };
        let role = if options.dry_run { Role::Looked } else { Role::Target };
        self.target.set(true);
        let claimed = flat(target.service.claim(calls::context(), dir, role)).await;
        if let Err(ServiceError::NoAnswer(_)) = claimed {
            self.target.set(false);
        }
        claimed.map(Some).map_err(at_target)
    }

    /// Gives the target back, unless that was done before. Its mark is of use for as long as sources are listed.
    pub async fn release_target<T: ServiceStub>(&self, target: &Target<T>) {
        if let Some(dir) = target.dir.clone()
            && self.target.replace(false)
        {
            // A mark that stays is removed by the next run.
            flat(target.service.release(calls::context(), dir)).await.ok();
        }
    }

    /// Gives back what was taken and was not given back before. The sources come last: their locks hold until nothing is deleted any
    /// more.
    pub async fn release<S: ServiceStub, T: ServiceStub>(&self, sources: &[Source<S>], target: &Target<T>) {
        self.release_target(target).await;
        for source in &sources[..self.sources] {
            // As for the target.
            flat(source.service.release(calls::context(), source.dir.clone()))
                .await
                .ok();
        }
    }
}

/// Whether a service lets this host do with `dir` what it will have to.
fn check_rights(
    hello: &Hello,
    dir: &DirId,
    needed: impl IntoIterator<Item = Right>,
    side: Side,
) -> Result<(), MoveError> {
    let held = hello.rights.iter().find(|(name, _)| *name == dir.name);
    let held = held.map(|(_, rights)| *rights).unwrap_or_default();
    match needed.into_iter().find(|right| !held.has(*right)) {
        Some(right) => Err(MoveError::Side(side, ServiceError::Denied(right))),
        None => Ok(()),
    }
}
