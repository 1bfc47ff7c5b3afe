//! The listings of all sources, merged in path order.

use std::collections::{BTreeMap, VecDeque};

use super::{
    MoveError, MoveOptions, ServiceStub, Side, Source, Why,
    calls::{self, flat},
    claims::Ground,
};
use crate::{
    model::{Entry, Kind, RelPath, Uncarried},
    plan::{Nesting, Reason},
    service::{Answer, Cursor, ITEMS_MAX, Page, ServiceError},
};

/// Something at the source.
#[derive(Debug)]
pub struct Found {
    /// Its path at the target.
    pub to: RelPath,
    /// Which sources have it, each with its state there. At least one.
    pub entries: Vec<(usize, Entry)>,
    /// Of a directory: what would be lost of it.
    pub uncarried: Uncarried,
}

impl Found {
    /// Whether it is a directory, in every source that has it.
    pub fn is_dir(&self) -> bool {
        self.entries.iter().all(|(_, entry)| entry.kind == Kind::Dir)
    }

    /// Whether several sources have it and it can't be merged.
    pub fn collides(&self) -> bool {
        self.entries.len() > 1 && !self.is_dir()
    }
}

/// A page of the merged listing.
#[derive(Debug, Default)]
pub struct FeedPage {
    /// In path order.
    pub found: Vec<Found>,
    /// What can't be moved at all, by the directory it is in.
    pub troubles: BTreeMap<RelPath, Vec<(RelPath, Why)>>,
    /// Whether this was the last.
    pub is_last: bool,
}

/// The merged listing.
pub struct Feed<'a, S> {
    streams: Vec<Stream<'a, S>>,
    ground: &'a Ground,
    page_entries: usize,
    page_bytes: usize,
    /// Names that a crash left set aside get their places back as they are met.
    restore: bool,
}

struct Stream<'a, S> {
    source: &'a Source<S>,
    /// Each with its path at the target, and what would be lost of it where that is a directory.
    buffer: VecDeque<(RelPath, Entry, Uncarried)>,
    next: Next,
    /// The last path that was listed.
    last: RelPath,
}

enum Next {
    List(Option<Cursor>),
    /// Files by name, from this one on: the path at the target, then that at the source.
    Files(VecDeque<(RelPath, RelPath)>),
    End,
}

impl<'a, S: ServiceStub> Feed<'a, S> {
    /// The merged listing of `sources`. `ground` tells what must not be met
    /// in it; on one host by device and inode as well.
    pub fn new(sources: &'a [Source<S>], options: &MoveOptions, ground: &'a Ground) -> Self {
        let stream = |source: &'a Source<S>| {
            let next = match &source.files {
                None => Next::List(None),
                Some(files) => {
                    let mut files: Vec<_> = files.iter().map(|(from, to)| (to.clone(), from.clone())).collect();
                    files.sort_unstable();
                    Next::Files(files.into())
                }
            };
            Stream {
                source,
                buffer: VecDeque::new(),
                next,
                last: RelPath::root(),
            }
        };
        Self {
            streams: sources.iter().map(stream).collect(),
            ground,
            page_entries: options.limits.page_entries,
            page_bytes: options.limits.page_bytes,
            restore: !options.dry_run && !options.copy,
        }
    }

    /// The next page.
    pub async fn next_page(&mut self) -> Result<FeedPage, MoveError> {
        let mut page = FeedPage::default();
        let mut bytes = 0;
        while page.found.len() < self.page_entries && bytes < self.page_bytes {
            for index in 0..self.streams.len() {
                self.fill(index, &mut page).await?;
            }
            let heads = self.streams.iter().filter_map(|stream| stream.buffer.front());
            let Some(to) = heads.map(|(to, _, _)| to).min().cloned() else {
                page.is_last = true;
                return Ok(page);
            };
            let (mut entries, mut uncarried) = (Vec::new(), Uncarried::default());
            for (index, stream) in self.streams.iter_mut().enumerate() {
                while let Some((_, entry, of_it)) = stream.buffer.pop_front_if(|(path, _, _)| *path == to) {
                    entries.push((index, entry));
                    uncarried = uncarried.or(of_it);
                }
            }
            bytes += to.as_bytes().len();
            page.found.push(Found { to, entries, uncarried });
        }
        Ok(page)
    }

    /// Passes over what is below `dir`, as far as it has not been listed yet.
    pub fn skip_below(&mut self, dir: &RelPath) {
        for stream in &mut self.streams {
            stream.buffer.retain(|(path, _, _)| !path.is_within(dir));
            if let Next::List(Some(cursor)) = &mut stream.next
                && cursor.after.is_within(dir)
            {
                *cursor = Cursor {
                    after: dir.clone(),
                    skip_below: true,
                };
            }
        }
    }

    /// Sees to it that a stream has a first entry, unless it is at its end.
    async fn fill(&mut self, index: usize, page: &mut FeedPage) -> Result<(), MoveError> {
        while self.streams[index].buffer.is_empty() {
            match &self.streams[index].next {
                Next::End => return Ok(()),
                Next::List(_) => self.list(index, page).await?,
                Next::Files(_) => self.stat_files(index, page).await?,
            }
        }
        Ok(())
    }

    async fn list(&mut self, index: usize, page: &mut FeedPage) -> Result<(), MoveError> {
        let stream = &mut self.streams[index];
        let Next::List(cursor) = std::mem::replace(&mut stream.next, Next::End) else {
            return Ok(());
        };
        let Source { service, dir, .. } = stream.source;
        let from = cursor.as_ref().map(|cursor| cursor.after.clone()).unwrap_or_default();
        let listed = flat(service.list(calls::context(), dir.clone(), cursor, self.restore)).await;
        let listed = listed.and_then(|listed| check_page(listed, &from, &mut stream.last));
        let listed = listed.map_err(|error| MoveError::Side(Side::Source(index), error))?;
        if listed
            .tokens
            .iter()
            .any(|(_, token)| self.ground.is_target_token(token))
            || listed.entries.iter().any(|entry| self.ground.is_target_root(entry))
        {
            return Err(MoveError::Nested(Some(index), Nesting::TargetInside));
        }
        if listed
            .tokens
            .iter()
            .any(|(dir, token)| !dir.is_root() && self.ground.is_source_token(token))
        {
            return Err(MoveError::NestedSources);
        }
        for (path, error) in &listed.failed {
            page.trouble(path.clone(), Why::Source(error.clone()));
        }
        for path in listed.reserved {
            page.trouble(path, Why::Reason(Reason::Reserved));
        }
        for dir in listed.too_long {
            let why = ServiceError::BadRequest("a path below it is longer than 4,095 bytes".into());
            page.troubles
                .entry(dir.clone())
                .or_default()
                .push((dir, Why::Source(why)));
        }
        let failed: std::collections::BTreeSet<_> = listed.failed.into_iter().map(|(path, _)| path).collect();
        let entries = listed.entries.into_iter().filter(|entry| !failed.contains(&entry.path));
        let mut uncarried: BTreeMap<_, _> = listed.uncarried.into_iter().collect();
        stream.buffer.extend(entries.map(|entry| {
            let of_it = uncarried.remove(&entry.path).unwrap_or_default();
            (entry.path.clone(), entry, of_it)
        }));
        stream.next = listed.next.map_or(Next::End, |cursor| Next::List(Some(cursor)));
        Ok(())
    }

    async fn stat_files(&mut self, index: usize, page: &mut FeedPage) -> Result<(), MoveError> {
        let stream = &mut self.streams[index];
        let Next::Files(files) = &mut stream.next else {
            return Ok(());
        };
        let some: Vec<_> = files.drain(..files.len().min(self.page_entries)).collect();
        if files.is_empty() {
            stream.next = Next::End;
        }
        let Source { service, dir, .. } = stream.source;
        let paths = some.iter().map(|(_, from)| from.clone()).collect();
        let states = flat(service.stat(calls::context(), dir.clone(), paths, self.restore)).await;
        let states = states.and_then(|states| calls::check_count(states, some.len()));
        let states = states.map_err(|error| MoveError::Side(Side::Source(index), error))?;
        for ((to, from), state) in some.into_iter().zip(states) {
            match state {
                Ok(Some(entry)) if entry.path != from => {
                    let error = ServiceError::BadAnswer(format!("the state of {}, not of {from}", entry.path));
                    return Err(MoveError::Side(Side::Source(index), error));
                }
                Ok(Some(entry)) => stream.buffer.push_back((to, entry, Uncarried::default())),
                Ok(None) if self.ground.is_again => {}
                Ok(None) => page.trouble(to, Why::Source(ServiceError::NotFound)),
                Err(error) => page.trouble(to, Why::Source(error)),
            }
        }
        Ok(())
    }
}

/// A page of a listing that began behind `from`, if it keeps the rules that the merge and its end depend on: entries in path order, each once,
/// and something new in each page that is not the last.
fn check_page(page: Page, from: &RelPath, last: &mut RelPath) -> Answer<Page> {
    let bad = |text: String| Err(ServiceError::BadAnswer(text));
    for entry in &page.entries {
        if entry.path <= *last {
            return bad(format!("{} is listed behind {last}", entry.path));
        }
        last.clone_from(&entry.path);
    }
    let others = page.failed.len() + page.reserved.len() + page.too_long.len() + page.tokens.len();
    let items = page.entries.len() + page.uncarried.len() + others;
    if items > ITEMS_MAX {
        return bad(format!("a page of {items} items"));
    }
    match &page.next {
        Some(next) if next.after <= *from || page.entries.len() + others == 0 => {
            bad(format!("a page from {from} on that leads nowhere"))
        }
        _ => Ok(page),
    }
}

impl FeedPage {
    fn trouble(&mut self, path: RelPath, why: Why) {
        let dir = path.parent().unwrap_or_default();
        self.troubles.entry(dir).or_default().push((path, why));
    }
}
