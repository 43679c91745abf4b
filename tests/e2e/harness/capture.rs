//! An output stream that is read as it comes.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

/// What came out of a stream so far.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<(Mutex<Captured>, Condvar)>,
    reader: JoinHandle<()>,
}

impl Capture {
    /// Reads `stream` to its end in a thread of its own.
    pub fn of(mut stream: impl Read + Send + 'static) -> Self {
        let shared: Arc<(Mutex<Captured>, Condvar)> = Arc::default();
        let ours = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut piece = vec![0; 64 << 10];
            loop {
                // A terminal that nobody has open is an error, and an end too.
                let len = stream.read(&mut piece).unwrap_or(0);
                let (captured, changed) = &*ours;
                let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
                captured.bytes.extend_from_slice(&piece[..len]);
                captured.ended = len == 0;
                changed.notify_all();
                if len == 0 {
                    return;
                }
            }
        });
        Self { shared, reader }
    }

    /// Waits until `enough` of what came so far; false if that never happens.
    pub fn wait_until(&self, until: Instant, enough: impl Fn(&[u8]) -> bool) -> bool {
        let (captured, changed) = &*self.shared;
        let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if enough(&captured.bytes) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if captured.ended || left.is_zero() {
                return false;
            }
            let waited = changed.wait_timeout(captured, left);
            captured = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What came so far.
    pub fn so_far(&self) -> Vec<u8> {
        let (captured, _) = &*self.shared;
        let captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.bytes.clone()
    }

    /// Everything, once the stream has ended.
    pub fn into_bytes(self) -> Vec<u8> {
        // The thread does nothing that could panic.
        let _ = self.reader.join();
        let (captured, _) = &*self.shared;
        let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut captured.bytes)
    }
}
