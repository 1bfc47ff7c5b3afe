//! A simulated file system: what Linux answers, and what a power loss may leave of it.
//!
//! A [`Machine`] has [`Disk`]s, each a file system of its own; [`Disk::fs`] gives the program under test a [`SimFs`].
//! `Disk` is everybody else: it sets up, looks, acts as a third party, and asks what would survive.
//!
//! Content is sparse pages; every change of a file and of names is kept until a sync covers it, and
//! [`Machine::crash`] picks one state that the contract in [`realize::fs`] allows under a [`Profile`]. Faults are data
//! ([`Fault`]). Answers and error numbers are those of ext4 and tmpfs for root on Linux; `tests/simulator/differential.rs`
//! compares them.
//!
//! Every call passes one yield point, where one in eight sleeps for a millisecond of tokio's (paused) time, and then takes
//! effect at once. Calls of handles from before a crash or kill, and of a machine that is off, never return or fail
//! with `EIO`.
//!
//! Left out: permissions (everybody is root), quotas, extended attributes, more than one mount on a disk, atime.

use std::{future::Future, io, path::Path, sync::Arc};

use realize::{
    fs::{BootId, Dir, File, Fs, JobLost, Lock, Metadata, Place, Rename, Sight},
    model::{Name, RelPath, Timestamp, Uncarried},
};
use rustix::io::Errno;

pub use self::{
    content::{Content, PAGE_BYTES, SECTOR_BYTES},
    crash::{Image, Node, Nodes, Profile},
    disk::{Disk, Mapping, Writer},
    disks::Disks,
    fault::{Act, At, Cache, Call, Fault, Kind, Off, Op, Refusals},
    inode::{Ino, Meta},
    machine::{Machine, Moment},
};
use self::{
    inode::{Body, FileBody},
    machine::{Paths, Request, Strike},
    tree::{HandleId, Tree},
};
use crate::random::Random;

mod content;
mod crash;
mod disk;
mod disks;
mod durable;
mod fault;
mod inode;
mod machine;
mod tree;
mod worst;

/// The file system of one disk, for one life of the program under test: after a crash or kill take a new one.
#[derive(Debug, Clone)]
pub struct SimFs {
    disk: Disk,
    generation: u64,
}

/// An open directory.
#[derive(Debug, Clone)]
pub struct SimDir(Arc<Open>);

/// An open file, and its metadata as it was opened.
#[derive(Debug, Clone)]
pub struct SimFile(Arc<Open>, Metadata);

/// What clones of a handle share.
#[derive(Debug)]
struct Open {
    fs: SimFs,
    ino: Ino,
    id: HandleId,
}

type Answer<T> = Result<T, Errno>;

impl Drop for Open {
    fn drop(&mut self) {
        self.fs.disk.with(|tree| tree.close(self.id));
    }
}

impl SimFs {
    async fn call<T>(
        &self,
        op: Op,
        paths: impl Fn(&Tree) -> Paths + Send + Sync,
        work: impl FnOnce(&mut Tree, &Strike, &mut Random) -> Answer<T> + Send,
    ) -> io::Result<T> {
        let request = Request {
            device: self.disk.device(),
            generation: self.generation,
            op,
            paths: &paths,
        };
        self.disk.machine().call(request, work).await
    }

    fn handle(&self, ino: Ino, id: HandleId) -> Arc<Open> {
        let fs = self.clone();
        Arc::new(Open { fs, ino, id })
    }
}

impl Fs for SimFs {
    type Dir = SimDir;
    type File = SimFile;

    fn boot(&self) -> BootId {
        u128::from(self.disk.machine().boots()).to_be_bytes()
    }

    async fn open_root(&self, path: &Path) -> io::Result<SimDir> {
        let path = path.as_os_str().as_encoded_bytes();
        let (ino, id) = self
            .call(
                Op::OpenRoot,
                |_| (None, None),
                |tree, _, _| {
                    let ino = tree.walk_host(path)?;
                    Ok((ino, tree.open_handle(ino, false, false)))
                },
            )
            .await?;
        Ok(SimDir(self.handle(ino, id)))
    }

    async fn offload<T, J>(&self, job: J) -> Result<T, JobLost>
    where
        T: Send + 'static,
        J: Future<Output = T> + Send + 'static,
    {
        tokio::spawn(job).await.map_err(|_| JobLost)
    }
}

impl SimDir {
    /// A call on the directory itself.
    async fn own<T>(
        &self,
        op: Op,
        work: impl FnOnce(&mut Tree, &Strike, &mut Random) -> Answer<T> + Send,
    ) -> io::Result<T> {
        let ino = self.0.ino;
        self.0.fs.call(op, |tree| (tree.path_of(ino), None), work).await
    }

    /// A call on a name in the directory.
    async fn at<T>(
        &self,
        op: Op,
        name: &Name,
        work: impl FnOnce(&mut Tree, &Strike, &mut Random) -> Answer<T> + Send,
    ) -> io::Result<T> {
        let ino = self.0.ino;
        self.0.fs.call(op, |tree| (joined(tree, ino, name), None), work).await
    }

    /// A call on a name here and one in `to_dir`.
    async fn between<T>(
        &self,
        op: Op,
        name: &Name,
        to_dir: &Self,
        to: &Name,
        work: impl FnOnce(&mut Tree) -> Answer<T> + Send,
    ) -> io::Result<T> {
        let (ino, to_ino) = (self.0.ino, to_dir.0.ino);
        let same_disk = self.0.fs.disk.device() == to_dir.0.fs.disk.device();
        let paths = |tree: &Tree| {
            let to = if same_disk { joined(tree, to_ino, to) } else { None };
            (joined(tree, ino, name), to)
        };
        let work = |tree: &mut Tree, _: &Strike, _: &mut Random| match same_disk {
            true => work(tree),
            false => Err(Errno::XDEV),
        };
        self.0.fs.call(op, paths, work).await
    }

    async fn file(&self, op: Op, name: &Name, write: bool) -> io::Result<SimFile> {
        let dir = self.0.ino;
        let ((id, ino), opened) = self
            .at(op, name, |tree, _, _| {
                if op == Op::Create {
                    tree.make(dir, name, Body::File(FileBody::default()), 0o600)?;
                }
                let (id, ino) = tree.open(dir, name, write, false)?;
                Ok(((id, ino), tree.metadata(ino)))
            })
            .await?;
        Ok(SimFile(self.0.fs.handle(ino, id), opened))
    }
}

fn joined(tree: &Tree, dir: Ino, name: &Name) -> Option<RelPath> {
    tree.path_of(dir)?.join(name).ok()
}

impl Dir for SimDir {
    type File = SimFile;

    async fn open_dir(&self, path: &RelPath) -> io::Result<Self> {
        let from = self.0.ino;
        let (ino, id) = self
            .own(Op::OpenDir, |tree, _, _| {
                let ino = tree.walk(from, path)?;
                Ok((ino, tree.open_handle(ino, false, false)))
            })
            .await?;
        Ok(Self(self.0.fs.handle(ino, id)))
    }

    async fn metadata(&self) -> io::Result<Metadata> {
        let ino = self.0.ino;
        self.own(Op::DirMetadata, |tree, _, _| Ok(tree.metadata(ino))).await
    }

    async fn stat(&self, name: &Name) -> io::Result<Metadata> {
        let dir = self.0.ino;
        self.at(Op::Stat, name, |tree, _, _| Ok(tree.metadata(tree.lookup(dir, name)?)))
            .await
    }

    async fn is_mount_point(&self, _name: &Name) -> io::Result<bool> {
        Ok(false)
    }

    async fn names(&self) -> io::Result<Vec<Name>> {
        let dir = self.0.ino;
        self.own(Op::Names, |tree, _, _| tree.names(dir)).await
    }

    async fn open(&self, name: &Name) -> io::Result<SimFile> {
        self.file(Op::Open, name, false).await
    }

    async fn open_write(&self, name: &Name) -> io::Result<SimFile> {
        self.file(Op::OpenWrite, name, true).await
    }

    async fn create(&self, name: &Name) -> io::Result<SimFile> {
        self.file(Op::Create, name, true).await
    }

    async fn symlink(&self, name: &Name, target: &[u8]) -> io::Result<()> {
        let dir = self.0.ino;
        self.at(Op::Symlink, name, |tree, _, _| {
            tree.make(dir, name, Body::Symlink(target.to_vec()), 0o777).map(drop)
        })
        .await
    }

    async fn readlink(&self, name: &Name) -> io::Result<Vec<u8>> {
        let dir = self.0.ino;
        self.at(Op::Readlink, name, |tree, _, _| {
            match &tree.inode(tree.lookup(dir, name)?).body {
                Body::Symlink(text) => Ok(text.clone()),
                _ => Err(Errno::INVAL),
            }
        })
        .await
    }

    async fn link(&self, name: &Name, to_dir: &Self, to: &Name) -> io::Result<()> {
        let (dir, to_ino) = (self.0.ino, to_dir.0.ino);
        self.between(Op::Link, name, to_dir, to, |tree| tree.link(dir, name, to_ino, to))
            .await
    }

    async fn rename(&self, name: &Name, to_dir: &Self, to: &Name, how: Rename) -> io::Result<()> {
        let (dir, to_ino) = (self.0.ino, to_dir.0.ino);
        self.between(Op::Rename, name, to_dir, to, |tree| {
            tree.rename(dir, name, to_ino, to, how)
        })
        .await
    }

    async fn unlink(&self, name: &Name) -> io::Result<()> {
        let dir = self.0.ino;
        self.at(Op::Unlink, name, |tree, _, _| tree.unlink(dir, name)).await
    }

    async fn mkdir(&self, name: &Name) -> io::Result<()> {
        let dir = self.0.ino;
        self.at(Op::Mkdir, name, |tree, _, _| {
            tree.make(dir, name, Body::Dir(Default::default()), 0o700).map(drop)
        })
        .await
    }

    async fn rmdir(&self, name: &Name) -> io::Result<()> {
        let dir = self.0.ino;
        self.at(Op::Rmdir, name, |tree, _, _| tree.rmdir(dir, name)).await
    }

    async fn set_mtime(&self, name: &Name, mtime: Timestamp) -> io::Result<()> {
        let dir = self.0.ino;
        self.at(Op::SetMtime, name, |tree, _, _| {
            tree.set_meta(tree.lookup(dir, name)?, None, mtime);
            Ok(())
        })
        .await
    }

    async fn set_meta(&self, mode: u32, mtime: Timestamp) -> io::Result<()> {
        let ino = self.0.ino;
        self.own(Op::DirSetMeta, |tree, _, _| {
            tree.set_meta(ino, Some(mode), mtime);
            Ok(())
        })
        .await
    }

    async fn sync(&self) -> io::Result<()> {
        let ino = self.0.ino;
        self.own(Op::DirSync, |tree, strike, _| {
            if let Some((errno, _)) = strike.sync_lost {
                tree.lose_dir(ino);
                return Err(errno);
            }
            tree.sync_dir(ino)
        })
        .await
    }

    async fn sync_fs(&self) -> io::Result<()> {
        self.own(Op::SyncFs, |tree, strike, random| {
            if let Some((errno, cache)) = strike.sync_lost {
                tree.lose_all(cache, random);
                return Err(errno);
            }
            tree.sync_all();
            Ok(())
        })
        .await
    }

    async fn try_lock(&self, lock: Lock) -> io::Result<()> {
        let id = self.0.id;
        self.own(Op::DirLock, |tree, _, _| tree.lock(id, lock)).await
    }

    async fn lock_holder(&self) -> Option<String> {
        let ino = self.0.ino;
        let holder = self.own(Op::LockHolder, |tree, _, _| {
            Ok(tree.is_locked(ino).then(|| "process 4711 (simulated)".to_owned()))
        });
        holder.await.unwrap_or(None)
    }

    async fn uncarried(&self) -> io::Result<Uncarried> {
        let ino = self.0.ino;
        self.own(Op::Uncarried, |tree, _, _| {
            let mode = tree.metadata(ino).mode;
            Ok(Uncarried {
                special_bits: mode & 0o6000 != 0,
                ..Uncarried::default()
            })
        })
        .await
    }

    async fn places(&self) -> io::Result<Vec<Place>> {
        let ino = self.0.ino;
        self.own(Op::Places, |tree, _, _| {
            let path = tree.path_of(ino).ok_or(Errno::NOENT)?;
            let device = tree.device;
            Ok(vec![Place { device, path }])
        })
        .await
    }
}

impl SimFile {
    async fn own<T>(
        &self,
        op: Op,
        work: impl FnOnce(&mut Tree, &Strike, &mut Random) -> Answer<T> + Send,
    ) -> io::Result<T> {
        let ino = self.0.ino;
        self.0.fs.call(op, |tree| (tree.path_of(ino), None), work).await
    }

    fn add_bytes(&self, op: Op, count: usize) {
        let disk = &self.0.fs.disk;
        disk.machine().add_bytes(disk.device(), op, count);
    }

    /// Calls that change the file want a handle open for writing.
    fn writable(&self, tree: &Tree, errno: Errno) -> Answer<Ino> {
        match tree.handles.get(&self.0.id) {
            Some(handle) if handle.write => Ok(self.0.ino),
            _ => Err(errno),
        }
    }
}

/// A limit on offsets, as the kernel's.
const OFFSET_MAX: u64 = i64::MAX as u64;

impl File for SimFile {
    fn opened(&self) -> &Metadata {
        &self.1
    }

    async fn metadata(&self) -> io::Result<Metadata> {
        let ino = self.0.ino;
        self.own(Op::FileMetadata, |tree, _, _| Ok(tree.metadata(ino))).await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let ino = self.0.ino;
        let count = self
            .own(Op::Read, |tree, strike, _| {
                if offset > OFFSET_MAX {
                    return Err(Errno::INVAL);
                }
                let limit = strike.short.unwrap_or(usize::MAX).max(1).min(buf.len());
                Ok(tree.file(ino).content.read(offset, &mut buf[..limit]))
            })
            .await?;
        self.add_bytes(Op::Read, count);
        Ok(count)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        let count = self
            .own(Op::Write, |tree, strike, random| {
                let ino = self.writable(tree, Errno::BADF)?;
                if offset > OFFSET_MAX {
                    return Err(Errno::INVAL);
                }
                let limit = strike.short.unwrap_or(usize::MAX).max(1).min(data.len());
                let count = tree.write(ino, offset, &data[..limit])?;
                if let Some((errno, cache)) = strike.write_back_lost {
                    tree.lose_file(ino, cache, random);
                    tree.fail_next_sync(ino, errno);
                }
                Ok(count)
            })
            .await?;
        self.add_bytes(Op::Write, count);
        Ok(count)
    }

    async fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let ino = self.0.ino;
        self.own(Op::NextData, |tree, _, _| Ok(tree.file(ino).content.next_data(offset)))
            .await
    }

    async fn reflink(&self, from: &Self, len: u64) -> io::Result<()> {
        let is_here = self.0.fs.disk.device() == from.0.fs.disk.device();
        self.own(Op::Reflink, |tree, strike, random| {
            let ino = self.writable(tree, Errno::BADF)?;
            match tree.refusals.reflink {
                Some(errno) => Err(errno),
                None if !is_here => Err(Errno::XDEV),
                None => tree.reflink(ino, from.0.ino, len, strike.short.map(|max| (max, random))),
            }
        })
        .await
    }

    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.own(Op::Punch, |tree, _, _| {
            let ino = self.writable(tree, Errno::BADF)?;
            if let Some(errno) = tree.refusals.punch {
                return Err(errno);
            }
            tree.punch(ino, offset, len);
            Ok(())
        })
        .await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.own(Op::SetLen, |tree, _, _| {
            if len > OFFSET_MAX {
                return Err(Errno::INVAL);
            }
            let ino = self.writable(tree, Errno::INVAL)?;
            tree.set_len(ino, len);
            Ok(())
        })
        .await
    }

    async fn set_meta(&self, mode: u32, mtime: Timestamp) -> io::Result<()> {
        let ino = self.0.ino;
        self.own(Op::FileSetMeta, |tree, _, _| {
            tree.set_meta(ino, Some(mode), mtime);
            Ok(())
        })
        .await
    }

    async fn sync(&self) -> io::Result<()> {
        let ino = self.0.ino;
        self.own(Op::FileSync, |tree, strike, random| {
            if let Some((errno, cache)) = strike.sync_lost {
                tree.lose_file(ino, cache, random);
                return Err(errno);
            }
            tree.sync_file(ino)
        })
        .await
    }

    async fn start_writeback(&self) -> io::Result<()> {
        // A crash may leave what is under way or not, as before.
        Ok(())
    }

    async fn drop_cache(&self) -> io::Result<()> {
        let ino = self.0.ino;
        self.own(Op::DropCache, |tree, _, _| {
            tree.drop_cache(ino);
            Ok(())
        })
        .await
    }

    async fn try_lock(&self, lock: Lock) -> io::Result<()> {
        let id = self.0.id;
        self.own(Op::FileLock, |tree, _, _| tree.lock(id, lock)).await
    }

    async fn unlock(&self) -> io::Result<()> {
        let id = self.0.id;
        self.own(Op::FileLock, |tree, _, _| {
            tree.unlock(id);
            Ok(())
        })
        .await
    }

    async fn lease(&self) -> io::Result<()> {
        let id = self.0.id;
        self.own(Op::Lease, |tree, _, _| tree.lease(id)).await
    }

    async fn lease_held(&self) -> io::Result<bool> {
        let id = self.0.id;
        self.own(Op::LeaseHeld, |tree, _, _| {
            Ok(tree.handles.get(&id).is_some_and(|handle| handle.lease))
        })
        .await
    }

    async fn sight(&self) -> io::Result<Sight> {
        self.own(Op::LeaseHeld, |tree, _, _| {
            Ok(match tree.refusals.maps_tell {
                true => Sight::AllByCtime,
                false => Sight::All,
            })
        })
        .await
    }

    async fn mount(&self) -> io::Result<Option<u64>> {
        Ok(Some(self.0.fs.disk.machine().boots()))
    }

    async fn uncarried(&self) -> io::Result<Uncarried> {
        let uncarried = Uncarried {
            hard_links: self.1.links > 1,
            special_bits: self.1.mode & 0o7000 != 0,
            ..Uncarried::default()
        };
        // The real one asks for attributes: that may fail.
        self.own(Op::Uncarried, |_, _, _| Ok(uncarried)).await
    }
}
