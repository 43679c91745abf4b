//! A thread that waits for events and hands them to their subscribers.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What an event loop serves.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Why an event loop cannot be started, or has died.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The host refused a resource.
    #[error("event loop: {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Waiting or registering failed.
    #[error("event loop: epoll")]
    Epoll(#[source] event_manager::Error),
    /// A subscriber panicked.
    #[error("event loop: panic: {0}")]
    Panic(String),
}

/// A running event loop. Dropping it stops the thread and waits for its end.
pub struct EventLoop {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts a thread called `name` (at most 15 bytes are shown by the system)
    /// that serves `subscribers`. `on_death` is called on that thread if it ends
    /// without having been asked to; the machine must not go on then.
    pub fn spawn(
        name: &str,
        subscribers: Vec<Subscriber>,
        on_death: impl FnOnce(LoopError) + Send + 'static,
    ) -> Result<Self, LoopError> {
        let host = |what| move |source| LoopError::Host { what, source };
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("eventfd"))?;
        let stop_seen = stop.try_clone().map_err(host("eventfd"))?;
        // Registered before anything else runs, so that this fails here and not
        // later on the thread.
        let (manager, stopped) = register(stop_seen, subscribers)?;
        let thread_name = name.to_owned();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if let Err(error) = run(manager, &stopped) {
                    log::error!("{thread_name}: {error}");
                    on_death(error);
                }
            })
            .map_err(host("thread"))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Asks the thread to end and waits until it has: its subscribers are no
    /// longer called, and its references to them are gone.
    pub fn stop(self) {}
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // Cannot fail: the counter goes from 0 to 1.
        let _ = self.stop.write(1);
        // A loop dropped by one of its own subscribers must not wait for itself.
        if thread.thread().id() != thread::current().id() {
            // A panic was already reported through `on_death`.
            let _ = thread.join();
        }
    }
}

/// The subscriber that ends the loop.
struct Stop {
    eventfd: EventFd,
    stopped: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<event_manager::Error>>>,
}

impl MutEventSubscriber for Stop {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.stopped.store(true, Ordering::Release);
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.eventfd, EventSet::IN)) {
            *lock(&self.failed) = Some(error);
        }
    }
}

type Registered = (EventManager<Subscriber>, Arc<AtomicBool>);

fn register(eventfd: EventFd, subscribers: Vec<Subscriber>) -> Result<Registered, LoopError> {
    let mut manager = EventManager::new().map_err(LoopError::Epoll)?;
    let stopped = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(Mutex::new(None));
    manager.add_subscriber(Arc::new(Mutex::new(Stop {
        eventfd,
        stopped: Arc::clone(&stopped),
        failed: Arc::clone(&failed),
    })) as Subscriber);
    if let Some(error) = lock(&failed).take() {
        return Err(LoopError::Epoll(error));
    }
    for subscriber in subscribers {
        manager.add_subscriber(subscriber);
    }
    Ok((manager, stopped))
}

fn run(mut manager: EventManager<Subscriber>, stopped: &AtomicBool) -> Result<(), LoopError> {
    while !stopped.load(Ordering::Acquire) {
        catch_unwind(AssertUnwindSafe(|| manager.run()))
            .map_err(|panic| LoopError::Panic(panic_text(panic.as_ref())))?
            .map_err(LoopError::Epoll)?;
    }
    Ok(())
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// Locks also what a panicking thread left behind: that panic ends the machine
/// anyway, and the way there must not panic again.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Bell {
        eventfd: EventFd,
        rung: mpsc::Sender<u64>,
    }

    impl MutEventSubscriber for Bell {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            let count = self.eventfd.read().unwrap();
            assert_ne!(count, 13, "unlucky");
            self.rung.send(count).unwrap();
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.eventfd, EventSet::IN)).unwrap();
        }
    }

    fn bell() -> (EventFd, mpsc::Receiver<u64>, Subscriber) {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let (rung, heard) = mpsc::channel();
        let bell = Bell {
            eventfd: eventfd.try_clone().unwrap(),
            rung,
        };
        (eventfd, heard, Arc::new(Mutex::new(bell)))
    }

    #[test]
    fn events_reach_the_subscriber_and_stop_releases_it() {
        let (eventfd, heard, subscriber) = bell();
        let died = |error| panic!("{error}");
        let event_loop = EventLoop::spawn("test", vec![subscriber.clone()], died).unwrap();
        eventfd.write(3).unwrap();
        assert_eq!(heard.recv().unwrap(), 3);
        event_loop.stop();
        assert_eq!(Arc::strong_count(&subscriber), 1);
    }

    #[test]
    fn a_panicking_subscriber_is_reported() {
        let (eventfd, _heard, subscriber) = bell();
        let (tell, told) = mpsc::channel();
        let event_loop = EventLoop::spawn("test", vec![subscriber], move |error| {
            tell.send(error.to_string()).unwrap();
        })
        .unwrap();
        eventfd.write(13).unwrap();
        assert!(told.recv().unwrap().contains("unlucky"));
        event_loop.stop();
    }

    #[test]
    fn dropping_the_loop_on_its_own_thread_does_not_hang() {
        let (eventfd, _heard, subscriber) = bell();
        let slot = Arc::new(Mutex::new(None::<EventLoop>));
        let (tell, told) = mpsc::channel();
        let inside = Arc::clone(&slot);
        let event_loop = EventLoop::spawn("test", vec![subscriber], move |_| {
            drop(inside.lock().unwrap().take());
            tell.send(()).unwrap();
        })
        .unwrap();
        *slot.lock().unwrap() = Some(event_loop);
        eventfd.write(13).unwrap();
        told.recv().unwrap();
    }
}
