//! The file `working-set`: pages that a machine needs soon after it was restored.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::files::{self, WORKING_SET};
use super::memory_file::PAGE;
use super::page_map::PageMap;
use super::{SnapshotError, damaged, host, sealed};

/// Runs of pages at most: each is a request to the host or two.
const RUNS_MAX: usize = 64;

/// Pages between two runs that are read along with them: asking costs more.
const GAP_PAGES: u64 = 16;

/// Pages that a machine has touched since it was restored, as runs, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// SHA-256 of the `memory` that it belongs to.
    memory: [u8; 32],
    runs: Vec<Run>,
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// The first, counted from the start of `memory`.
    pub first_page: u32,
    /// How many.
    pub pages: u32,
}

impl Run {
    /// The page behind the last.
    fn end(&self) -> u64 {
        u64::from(self.first_page) + u64::from(self.pages)
    }
}

impl WorkingSet {
    /// What was touched of `memory`, which is mapped from a template's file with
    /// that checksum.
    pub(crate) fn of(memory: &GuestMemoryMmap, checksum: [u8; 32]) -> Result<Self, SnapshotError> {
        let map = PageMap::open()?;
        let mut runs = Vec::new();
        let mut first_page = 0;
        for region in memory.iter() {
            let pages = region.len() / PAGE as u64;
            let there = map.there(region, 0, region.len())?;
            for (_, page) in there.zip(first_page..).filter(|(there, _)| *there) {
                add(&mut runs, page, GAP_PAGES);
            }
            first_page += pages as u32;
        }
        Ok(Self {
            memory: checksum,
            runs: thin_out(runs),
        })
    }

    /// Writes it beside the template's other files, for the next
    /// [`Template::open`](super::Template::open). It replaces one that is there.
    pub fn write(&self, folder: BorrowedFd) -> Result<(), SnapshotError> {
        let bytes = sealed::seal(self)
            .map_err(|error| host("encode the working set")(io::Error::other(error)))?;
        let _ = rustix::fs::unlinkat(folder, WORKING_SET, rustix::fs::AtFlags::empty());
        let mut file = files::create(folder, WORKING_SET)?;
        file.write_all(&bytes)
            .map_err(host("write the working set"))
    }

    /// Reads the one of the `memory` with that checksum and length.
    pub(super) fn read(
        folder: BorrowedFd,
        memory: [u8; 32],
        len_bytes: u64,
    ) -> Result<Self, SnapshotError> {
        let set: Self = sealed::unseal(WORKING_SET, &files::read(folder, WORKING_SET)?)?;
        if set.memory != memory {
            return Err(damaged(WORKING_SET, "it belongs to another memory"));
        }
        let mut behind = 0;
        for run in &set.runs {
            let inside = run.pages > 0 && run.end() <= len_bytes / PAGE as u64;
            if u64::from(run.first_page) < behind || !inside {
                return Err(damaged(
                    WORKING_SET,
                    "its pages are not in memory, or not in order",
                ));
            }
            behind = run.end();
        }
        if set.runs.len() > RUNS_MAX {
            return Err(damaged(WORKING_SET, "it has too many runs"));
        }
        Ok(set)
    }

    /// The runs, in order.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }
}

/// Adds a page behind all others.
fn add(runs: &mut Vec<Run>, page: u32, gap: u64) {
    match runs.last_mut() {
        Some(last) if u64::from(page) - last.end() <= gap => {
            last.pages = page - last.first_page + 1;
        }
        _ => runs.push(Run {
            first_page: page,
            pages: 1,
        }),
    }
}

/// Joins runs that are not far apart until there are no more than [`RUNS_MAX`].
fn thin_out(mut runs: Vec<Run>) -> Vec<Run> {
    let mut gap = GAP_PAGES;
    while runs.len() > RUNS_MAX {
        gap *= 2;
        let mut joined: Vec<Run> = Vec::new();
        for run in runs {
            match joined.last_mut() {
                Some(last) if u64::from(run.first_page) - last.end() <= gap => {
                    last.pages = (run.end() - u64::from(last.first_page)) as u32;
                }
                _ => joined.push(run),
            }
        }
        runs = joined;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn run(first_page: u32, pages: u32) -> Run {
        Run { first_page, pages }
    }

    #[test]
    fn pages_that_are_near_become_one_run() {
        let mut runs = Vec::new();
        for page in [3, 4, 5, 22, 39, 100] {
            add(&mut runs, page, GAP_PAGES);
        }
        assert_eq!(runs, [run(3, 37), run(100, 1)]);
    }

    #[test]
    fn runs_are_joined_until_they_are_few() {
        let runs = (0..1000).map(|n| run(n * 100, 1)).collect();
        let few = thin_out(runs);
        assert!(few.len() <= RUNS_MAX);
        assert_eq!((few[0].first_page, few.last().unwrap().end()), (0, 99_901));
        assert_eq!(thin_out(vec![run(1, 1), run(90, 1)]).len(), 2);
    }

    #[test]
    fn what_a_file_says_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let folder = File::open(&folder).unwrap();
        let len_bytes = 100 * PAGE as u64;
        let read = |runs: Vec<Run>, memory| {
            let set = WorkingSet {
                memory: [1; 32],
                runs,
            };
            set.write(folder.as_fd()).unwrap();
            WorkingSet::read(folder.as_fd(), memory, len_bytes).map(|read| assert_eq!(read, set))
        };
        read(vec![run(0, 1), run(1, 99)], [1; 32]).unwrap();
        read(vec![], [1; 32]).unwrap();
        assert!(read(vec![], [2; 32]).is_err(), "of another memory");
        for runs in [
            vec![run(0, 101)],
            vec![run(100, 1)],
            vec![run(5, 0)],
            vec![run(u32::MAX, u32::MAX)],
            vec![run(5, 2), run(6, 1)],
            vec![run(5, 2), run(1, 1)],
            (0..=RUNS_MAX as u32).map(|n| run(n, 1)).collect(),
        ] {
            assert!(read(runs.clone(), [1; 32]).is_err(), "{runs:?}");
        }
    }
}
