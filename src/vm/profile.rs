//! Where the guest spends its time: its instruction pointer, sampled on a timer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time between two samples. 5 ms are some 7,000 instructions of a host that
/// emulates ring 0.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);

/// Distinct addresses kept; later ones are not counted.
const ADDRESSES_MAX: usize = 1 << 16;

/// Counts by guest-virtual address.
#[derive(Debug)]
pub struct Profile {
    hits: Mutex<HashMap<u64, u64>>,
    out: File,
}

impl Profile {
    /// No samples yet; they will be written to `out`.
    pub fn new(out: File) -> Self {
        Self { hits: Mutex::default(), out }
    }

    /// One sample.
    pub fn hit(&self, address: u64) {
        let mut hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
        if hits.len() < ADDRESSES_MAX || hits.contains_key(&address) {
            *hits.entry(address).or_default() += 1;
        }
    }

    /// One line an address, most hits first: address in hex, count.
    pub fn write(&self) -> io::Result<()> {
        let hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<(u64, u64)> = hits.iter().map(|(a, n)| (*n, *a)).collect();
        rows.sort_unstable_by(|a, b| b.cmp(a));
        let mut out = BufWriter::new(&self.out);
        for (count, address) in rows {
            writeln!(out, "{address:016x} {count}")?;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_hits_come_first() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let profile = Profile::new(file.reopen().unwrap());
        for address in [1, 2, 2, 0xffff_ffff_8100_0000] {
            profile.hit(address);
        }
        profile.write().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.starts_with("0000000000000002 2\n"));
        assert_eq!(text.lines().count(), 3);
    }
}
