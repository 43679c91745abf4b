//! Where the guest spends its time: its call stack, sampled on a timer.
//!
//! Written as folded stacks (one line a stack, callers first), which flame graph
//! tools read. Addresses are guest-virtual; the kernel's System.map names them.
//! With a timeline the outermost frame is the step that the sample fell into.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::kick::{Clock, KickTimer};
use crate::trace::Timeline;

/// CPU time between two samples: some 1,500 instructions of a host that emulates
/// ring 0.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(1);

/// Distinct stacks kept; later ones are not counted.
const STACKS_MAX: usize = 1 << 16;

/// Frames kept of each stack.
const FRAMES_MAX: usize = 48;

/// A step of the start, and a stack in it.
type Place = (Option<String>, Vec<u64>);

/// Counts by step and call stack.
#[derive(Debug)]
pub struct Profile {
    hits: Mutex<HashMap<Place, u64>>,
    timeline: Timeline,
    out: File,
}

impl Profile {
    /// No samples yet; they will be written to `out`.
    pub fn new(out: File, timeline: Timeline) -> Self {
        Self {
            hits: Mutex::default(),
            timeline,
            out,
        }
    }

    /// One sample: innermost address first, at most [`FRAMES_MAX`] of them.
    pub fn hit(&self, stack: Vec<u64>) {
        let mut hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (self.timeline.step(), stack);
        if hits.len() < STACKS_MAX || hits.contains_key(&place) {
            *hits.entry(place).or_default() += 1;
        }
    }

    /// One line a stack, most hits first: addresses in hex, outermost first and
    /// separated by `;`, then the count.
    pub fn write(&self) -> io::Result<()> {
        let hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<_> = hits.iter().map(|(place, n)| (*n, place)).collect();
        rows.sort_unstable_by(|a, b| b.cmp(a));
        let mut out = BufWriter::new(&self.out);
        for (count, (step, stack)) in rows {
            let addresses = stack.iter().rev().map(|a| format!("{a:x}"));
            let frames: Vec<String> = step.iter().cloned().chain(addresses).collect();
            writeln!(out, "{} {count}", frames.join(";"))?;
        }
        out.flush()
    }
}

/// Signals the calling thread every [`SAMPLE_INTERVAL`] of its CPU time.
pub fn sample_timer(signal: libc::c_int) -> io::Result<KickTimer> {
    let timer = KickTimer::new(Clock::ThreadCpu, signal)?;
    timer.every(SAMPLE_INTERVAL)?;
    Ok(timer)
}

/// Follows frame pointers from `rip` and `rbp`. `read` gives the 8 bytes at a
/// guest-virtual address, or nothing where none is mapped. The guest can build
/// any chain: it ends where an address does not grow.
pub fn stack(rip: u64, rbp: u64, read: impl Fn(u64) -> Option<u64>) -> Vec<u64> {
    let mut stack = vec![rip];
    let mut frame = rbp;
    while stack.len() < FRAMES_MAX {
        let Some(caller) = frame.checked_add(8).and_then(&read).filter(|a| *a != 0) else {
            break;
        };
        stack.push(caller);
        match read(frame) {
            Some(next) if next > frame => frame = next,
            _ => break,
        }
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_hits_come_first() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let profile = Profile::new(file.reopen().unwrap(), Timeline::disabled());
        for stack in [vec![1], vec![2, 0xa], vec![2, 0xa]] {
            profile.hit(stack);
        }
        profile.write().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text, "a;2 2\n1 1\n");
    }

    #[test]
    fn frames_are_followed_until_they_end() {
        let memory = HashMap::from([(0x100, 0x200), (0x108, 11), (0x200, 0), (0x208, 12)]);
        let read = |address| memory.get(&address).copied();
        assert_eq!(stack(10, 0x100, read), [10, 11, 12]);
        assert_eq!(stack(10, u64::MAX, read), [10]);
    }

    #[test]
    fn a_loop_of_frames_ends() {
        let read = |address| Some(if address % 16 == 0 { 0x100 } else { 7 });
        assert_eq!(stack(10, 0x100, read), [10, 7]);
        let rising = |address: u64| Some(address + 16);
        assert_eq!(stack(10, 0x100, rising).len(), FRAMES_MAX);
    }
}
