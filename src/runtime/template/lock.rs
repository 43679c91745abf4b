//! One maker at a time for each template; the others wait for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::event::PollFlags;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};

use super::store::{Name, Store, StoreError, empty};
use crate::Error;
use crate::session::wait_for;
use crate::signals::{Signal, Signals};

/// The right to make or remove a template, until dropped: its draft's folder,
/// locked. So nothing but the draft tells of a process that was killed, and
/// nothing at all once it has become the template.
#[derive(Debug)]
pub struct Lock<'a> {
    store: &'a Store,
    name: Name,
    draft: Arc<OwnedFd>,
    published: bool,
}

impl<'a> Lock<'a> {
    /// The lock, unless somebody else has it.
    pub fn try_take(store: &'a Store, name: &Name) -> Result<Option<Self>, StoreError> {
        loop {
            let draft = store.open_draft(name)?;
            match flock(&draft, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(store.failed("lock", &name.draft(), e)),
            }
            if let Some(lock) = Self::of(store, name, Arc::new(draft))? {
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
            let draft = Arc::new(store.open_draft(name)?);
            wait(&draft, signals)?;
            if let Some(lock) = Self::of(store, name, draft)? {
                return Ok(lock);
            }
        }
    }

    /// The lock that `draft` is, unless it has become the template or is gone.
    fn of(store: &'a Store, name: &Name, draft: Arc<OwnedFd>) -> Result<Option<Self>, StoreError> {
        Ok(store.is_draft(name, &draft)?.then(|| Self {
            store,
            name: name.clone(),
            draft,
            published: false,
        }))
    }

    /// The folder to make the template in, empty.
    pub fn begin(&self) -> Result<BorrowedFd<'_>, StoreError> {
        empty(self.draft.as_fd()).map_err(|e| self.failed("empty", e))?;
        Ok(self.draft.as_fd())
    }

    /// What was made becomes the template.
    pub fn publish(mut self) -> Result<(), StoreError> {
        self.store.publish(&self.name, self.draft.as_fd())?;
        self.published = true;
        Ok(())
    }

    /// Removes the template, if it is there.
    pub fn remove(&mut self) -> Result<(), StoreError> {
        let Some(template) = self.store.find(&self.name)? else {
            return Ok(());
        };
        // Whoever has just made it may not have closed it yet.
        retry_on_intr(|| flock(&template, FlockOperation::LockExclusive))
            .map_err(|e| self.failed("lock", e))?;
        self.begin()?;
        // It takes the place of the empty draft, and is the lock from then on.
        self.store.withdraw(&self.name)?;
        self.draft = Arc::new(template);
        self.begin().map(drop)
    }

    fn failed(&self, what: &'static str, error: Errno) -> StoreError {
        self.store.failed(what, &self.name.draft(), error)
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let removed = self
            .begin()
            .and_then(|_| self.store.remove_draft(&self.name));
        if let Err(error) = removed {
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

/// Waits until `draft` is locked by us. flock(2) gives no event, so that a thread
/// waits in it; after a signal it is left behind and ends with the process.
fn wait(draft: &Arc<OwnedFd>, signals: &Signals) -> Result<(), Error> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::host("make a pipe"))?;
    let locked = Arc::clone(draft);
    let waiter = thread::Builder::new().name("lock".to_owned());
    let waiter = waiter.spawn(move || {
        let result = retry_on_intr(|| flock(&*locked, FlockOperation::LockExclusive));
        drop(locked);
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
    use crate::template::store::{names_in, write_small};
    use rustix::fs::{Mode, OFlags, openat};
    use std::io::Read;
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
        write_small(lock.begin().unwrap(), "state", b"1").unwrap();
        drop(lock);
        assert_eq!(names_of(&store), [""; 0]);

        let lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        write_small(lock.begin().unwrap(), "state", b"2").unwrap();
        assert!(store.find(&name(0)).unwrap().is_none());
        lock.publish().unwrap();
        assert_eq!(names_of(&store), [name(0).to_string()]);
    }

    #[test]
    fn what_a_killed_maker_has_left_is_taken_over() {
        let (_folder, store) = store();
        let left = store.open_draft(&name(0)).unwrap();
        write_small(left.as_fd(), "memory", b"half").unwrap();
        let lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        lock.begin().unwrap();
        lock.publish().unwrap();
        let found = store.find(&name(0)).unwrap().unwrap();
        assert_eq!(names_in(found.as_fd()).unwrap(), [""; 0]);
    }

    #[test]
    fn removing_what_is_open_and_making_it_again() {
        let (_folder, store) = store();
        let lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        write_small(lock.begin().unwrap(), "state", b"1").unwrap();
        lock.publish().unwrap();
        let found = store.find(&name(0)).unwrap().unwrap();
        let open = openat(&found, "state", OFlags::RDONLY, Mode::empty()).unwrap();

        let mut lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        lock.remove().unwrap();
        lock.remove().unwrap();
        assert!(store.find(&name(0)).unwrap().is_none());
        assert!(Lock::try_take(&store, &name(0)).unwrap().is_none());
        let mut content = String::new();
        std::fs::File::from(open)
            .read_to_string(&mut content)
            .unwrap();
        assert_eq!(content, "1");
        write_small(lock.begin().unwrap(), "state", b"2").unwrap();
        lock.publish().unwrap();
        assert_eq!(names_of(&store), [name(0).to_string()]);

        let mut lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
        lock.remove().unwrap();
        drop(lock);
        assert_eq!(names_of(&store), [""; 0]);
    }
}
