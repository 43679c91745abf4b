//! A guest that waits for an interrupt: since when, and whether decoded code is worth
//! its memory meanwhile. Most of what a start has decoded never runs again.

use std::time::{Duration, Instant};

use crate::heap;
use crate::interpret::CodeCache;
use crate::kick::{self, Clock, KickTimer};

/// A guest that has waited for so long idles.
const AFTER: Duration = Duration::from_millis(250);

/// What is decoded again at each tick of an idle guest is less.
const WORTH_BYTES: usize = 512 << 10;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Where the guest goes on after its HLT, and since when it waits.
    halt: Option<(u64, Instant)>,
    /// While it runs, KVM_RUN comes back every [`AFTER`].
    timer: Option<KickTimer>,
}

impl Idle {
    /// KVM is going to execute a HLT that ends at `next`.
    pub fn halt(&mut self, next: u64, code: &CodeCache) {
        self.halt = Some((next, Instant::now()));
        if self.timer.is_none() && code.size_bytes() > WORTH_BYTES {
            let timer = KickTimer::new(Clock::Monotonic, kick::signal());
            let started = timer.and_then(|timer| timer.every(AFTER).map(|()| timer));
            self.timer = started
                .inspect_err(|error| log::debug!("no timer for an idle guest: {error}"))
                .ok();
        }
    }

    /// KVM_RUN came back at `rip`: whether the guest still waits. If it does for long,
    /// `code` is forgotten.
    pub fn still(&mut self, rip: u64, code: &mut CodeCache) -> bool {
        // KVM has not told the guest's end of waiting: it would be elsewhere.
        let Some((_, since)) = self.halt.filter(|(next, _)| *next == rip) else {
            self.halt = None;
            return false;
        };
        if self.timer.is_some() && since.elapsed() >= AFTER {
            self.timer = None;
            code.clear();
            heap::give_back();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIP: u64 = 0x1000;

    #[test]
    fn an_interrupt_ends_the_wait() {
        let (mut idle, mut code) = (Idle::default(), CodeCache::new());
        assert!(!idle.still(RIP, &mut code));
        idle.halt(RIP, &code);
        assert!(idle.still(RIP, &mut code));
        assert!(idle.still(RIP, &mut code));
        assert!(!idle.still(RIP + 1, &mut code));
        // The handler returns there.
        assert!(!idle.still(RIP, &mut code));
    }

    #[test]
    fn little_code_is_not_worth_a_timer() {
        let (mut idle, code) = (Idle::default(), CodeCache::new());
        idle.halt(RIP, &code);
        assert!(idle.timer.is_none());
    }
}
