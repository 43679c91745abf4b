//! One maker at a time for each template; the others wait for it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::event::PollFlags;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::store::{Name, Store, StoreError};
use crate::Error;
use crate::session::wait_for;
use crate::signals::{Signal, Signals};

/// The right to make or remove a template, until dropped.
#[derive(Debug)]
pub struct Lock<'a> {
    store: &'a Store,
    name: Name,
    _file: Arc<File>,
}

impl<'a> Lock<'a> {
    /// The lock, unless somebody else has it.
    pub fn try_take(store: &'a Store, name: &Name) -> Result<Option<Self>, StoreError> {
        loop {
            let file = open(store, name)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(store.failed("lock", &name.lock(), e)),
            }
            if let Some(lock) = Self::of(store, name, Arc::new(file))? {
                return Ok(Some(lock));
            }
        }
    }

    /// The lock; `waiting` is called if it has to be waited for. A signal by which
    /// people end a process ends the wait.
    pub fn take(
        store: &'a Store,
        name: &Name,
        signals: &Signals,
        waiting: impl FnOnce(),
    ) -> Result<Self, WaitError> {
        let mut waiting = Some(waiting);
        loop {
            if let Some(lock) = Self::try_take(store, name)? {
                return Ok(lock);
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            let file = Arc::new(open(store, name)?);
            wait(&file, signals)?;
            if let Some(lock) = Self::of(store, name, file)? {
                return Ok(lock);
            }
        }
    }

    /// The lock that `file` is, unless the one who had it before has removed it.
    fn of(store: &'a Store, name: &Name, file: Arc<File>) -> Result<Option<Self>, StoreError> {
        let stat = fstat(&*file).map_err(|e| store.failed("lock", &name.lock(), e))?;
        Ok((stat.st_nlink > 0).then(|| Self {
            store,
            name: name.clone(),
            _file: file,
        }))
    }

    /// Removes the template.
    pub fn remove(&self) -> Result<(), StoreError> {
        self.store.remove(&self.name)
    }

    /// Removes what a maker that was killed has left.
    pub fn discard(&self) -> Result<(), StoreError> {
        self.store.discard(&self.name)
    }

    /// An empty folder to make the template in.
    pub fn begin(&self) -> Result<Draft<'_>, StoreError> {
        Ok(Draft {
            folder: self.store.begin(&self.name)?,
            lock: self,
        })
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Still locked, so that whoever waits for this file finds it without a name.
        let _ = unlinkat(self.store.fd(), self.name.lock(), AtFlags::empty());
    }
}

/// A template that is being made; gone when dropped.
#[derive(Debug)]
pub struct Draft<'a> {
    lock: &'a Lock<'a>,
    folder: OwnedFd,
}

impl Draft<'_> {
    /// Its folder.
    pub fn folder(&self) -> std::os::fd::BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// It is whole: the template is there from now on.
    pub fn publish(self) -> Result<(), StoreError> {
        self.lock.store.publish(&self.lock.name, self.folder())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // Nothing is there any more when it has been published.
        if let Err(error) = self.lock.discard() {
            log::debug!("{error}");
        }
    }
}

/// A lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The folder of the templates.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A signal, or the host.
    #[error(transparent)]
    Run(#[from] Error),
}

fn open(store: &Store, name: &Name) -> Result<File, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = name.lock();
    openat(store.fd(), &file, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|e| store.failed("open", &file, e))
}

/// Waits until `file` is locked by us. flock(2) gives no event, so that a thread
/// waits in it; after a signal it is left behind and ends with the process.
fn wait(file: &Arc<File>, signals: &Signals) -> Result<(), Error> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::host("make a pipe"))?;
    let locked = Arc::clone(file);
    let waiter = thread::Builder::new().name("lock".to_owned());
    let waiter = waiter.spawn(move || {
        let result = loop {
            match flock(&*locked, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        drop(theirs);
        result
    });
    let waiter = waiter.map_err(Error::host("start a thread"))?;
    loop {
        let fds = [(ours.as_fd(), PollFlags::IN), (signals.fd(), PollFlags::IN)];
        let [done, signalled] = wait_for(fds, None)?;
        if signalled
            && let Some(number) = std::iter::from_fn(|| signals.take()).find_map(Signal::ends_start)
        {
            return Err(Error::Interrupted(number));
        }
        if done {
            let result = waiter.join().unwrap_or(Err(Errno::IO));
            return result.map_err(Error::host("lock a template"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::store::tests::{name, names_of, store};
    use std::sync::mpsc;

    #[test]
    fn one_at_a_time() {
        let (_folder, store) = store();
        let lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        assert!(Lock::try_take(&store, &name(0)).unwrap().is_none());
        assert!(Lock::try_take(&store, &name(1)).unwrap().is_some());
        drop(lock);
        assert!(Lock::try_take(&store, &name(0)).unwrap().is_some());
        assert_eq!(names_of(&store), [""; 0]);
    }

    #[test]
    fn the_next_one_gets_it_when_it_is_dropped() {
        let (_folder, store) = store();
        let signals = Signals::block().unwrap();
        let lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        let (waits, waiting) = mpsc::channel();
        thread::scope(|scope| {
            let next = scope.spawn(|| {
                let taken = Lock::take(&store, &name(0), &signals, || waits.send(()).unwrap());
                let lock = taken.unwrap();
                assert!(Lock::try_take(&store, &name(0)).unwrap().is_none());
                drop(lock);
            });
            waiting.recv().unwrap();
            drop(lock);
            next.join().unwrap();
        });
        assert_eq!(names_of(&store), [""; 0]);
    }

    #[test]
    fn a_signal_ends_the_wait() {
        let (_folder, store) = store();
        let signals = Signals::block().unwrap();
        let _lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        let taken = Lock::take(&store, &name(0), &signals, || {
            crate::fatal::tests::raise(libc::SIGTERM);
        });
        assert!(matches!(taken, Err(WaitError::Run(Error::Interrupted(15)))));
    }

    #[test]
    fn a_draft_is_gone_unless_published() {
        let (_folder, store) = store();
        let lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        drop(lock.begin().unwrap());
        assert!(store.find(&name(0)).unwrap().is_none());
        lock.begin().unwrap().publish().unwrap();
        assert!(store.find(&name(0)).unwrap().is_some());
        lock.remove().unwrap();
        drop(lock);
        assert_eq!(names_of(&store), [""; 0]);
    }
}
