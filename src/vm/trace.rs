//! Timeline of a start, written in Chrome's trace event format (load it in
//! Perfetto or chrome://tracing).
//!
//! Each mark has the CPU time of the process beside the wall clock: on a busy
//! machine only that can be compared, and it holds the guest's own work. What does
//! not depend on the neighbour at all is counted: exits, instructions of ring 0
//! where this process interprets them, and pages touched.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Sub;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Most marks kept; a guest that floods the milestone port adds none behind it.
const MARKS_MAX: usize = 4096;

/// Collects marks from all threads. Cloning shares the timeline. A disabled one
/// costs a test of an `Option`.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Option<Arc<Marks>>);

#[derive(Debug)]
struct Marks {
    counters: Arc<Counters>,
    origin: Instant,
    /// `origin` on CLOCK_MONOTONIC, to line up with other programs' clocks.
    origin_monotonic: Duration,
    marks: Mutex<Vec<Mark>>,
}

/// What the vCPUs of a machine count as they run.
#[derive(Debug, Default)]
pub struct Counters {
    /// Times that KVM_RUN came back.
    pub exits: AtomicU64,
    /// Instructions of ring 0 that were interpreted, see [`crate::accelerate`].
    pub instructions: AtomicU64,
}

/// Totals so far of what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Counts {
    /// See [`Counters::exits`].
    pub exits: u64,
    /// See [`Counters::instructions`].
    pub instructions: u64,
    /// Page faults of the process without I/O: pages touched for the first time,
    /// the guest's among them.
    pub pages: u64,
}

impl Counters {
    fn totals(&self) -> Counts {
        Counts {
            exits: self.exits.load(Ordering::Relaxed),
            instructions: self.instructions.load(Ordering::Relaxed),
            pages: minor_faults(),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            exits: self.exits.saturating_sub(before.exits),
            instructions: self.instructions.saturating_sub(before.instructions),
            pages: self.pages.saturating_sub(before.pages),
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Wall time since the origin.
    pub at: Duration,
    /// CPU time of the process so far, guest included.
    pub cpu: Duration,
    /// What was counted so far.
    pub counts: Counts,
    /// What.
    pub name: String,
}

impl Timeline {
    /// A timeline whose zero is `origin`, the start of the process.
    pub fn new(origin: Instant) -> Self {
        Self(Some(Arc::new(Marks {
            counters: Arc::default(),
            origin,
            origin_monotonic: clock(ClockId::Monotonic).saturating_sub(origin.elapsed()),
            marks: Mutex::default(),
        })))
    }

    /// A timeline that keeps nothing.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Where vCPUs count. Of no effect when disabled.
    pub fn counters(&self) -> Arc<Counters> {
        let counters = self.0.as_ref().map(|inner| inner.counters.clone());
        counters.unwrap_or_default()
    }

    /// Notes that `name` happened now.
    pub fn mark(&self, name: impl Into<String>) {
        if let Some(inner) = &self.0 {
            let mark = Mark {
                at: inner.origin.elapsed(),
                cpu: clock(ClockId::ProcessCPUTime),
                counts: inner.counters.totals(),
                name: name.into(),
            };
            let mut marks = inner.marks.lock().unwrap_or_else(PoisonError::into_inner);
            if marks.len() < MARKS_MAX {
                marks.push(mark);
            }
        }
    }

    /// The mark that was made last, as the name of the step that it began.
    pub fn step(&self) -> Option<String> {
        let marks = self.0.as_ref()?.marks.lock();
        let marks = marks.unwrap_or_else(PoisonError::into_inner);
        marks.last().map(|mark| mark.name.clone())
    }

    /// Marks so far, in order of time.
    pub fn marks(&self) -> Vec<Mark> {
        let Some(inner) = &self.0 else {
            return Vec::new();
        };
        let mut marks = inner
            .marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        marks.sort();
        marks
    }

    /// Writes the timeline: an instant event for each mark, and a complete event
    /// for the time between each two. Nothing is written when disabled.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let Some(inner) = &self.0 else {
            return Ok(());
        };
        let mut out = BufWriter::new(File::create(path)?);
        write_events(&mut out, inner.origin_monotonic, &self.marks())?;
        out.flush()
    }
}

#[allow(unsafe_code)]
fn minor_faults() -> u64 {
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a local that outlives the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    u64::try_from(usage.ru_minflt).unwrap_or(0)
}

fn clock(id: ClockId) -> Duration {
    let now = clock_gettime(id);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Trace Event Format, JSON object form; `ts` and `dur` are microseconds.
fn write_events(out: &mut impl Write, origin: Duration, marks: &[Mark]) -> io::Result<()> {
    writeln!(out, r#"{{"traceEvents":["#)?;
    for (i, mark) in marks.iter().enumerate() {
        let name = escape(&mark.name);
        let (ts, cpu) = (us(mark.at), us(mark.cpu));
        if let Some(before) = i.checked_sub(1).and_then(|p| marks.get(p)) {
            let (from, cpu_from) = (us(before.at), us(before.cpu));
            writeln!(
                out,
                r#"{{"name":"→ {name}","ph":"X","ts":{from:.3},"dur":{:.3},"pid":1,"tid":1,"args":{{"cpu_us":{:.3},{}}}}},"#,
                ts - from,
                cpu - cpu_from,
                counted(mark.counts - before.counts)
            )?;
        }
        let comma = if i + 1 == marks.len() { "" } else { "," };
        writeln!(
            out,
            r#"{{"name":"{name}","ph":"i","s":"p","ts":{ts:.3},"pid":1,"tid":1,"args":{{"cpu_us":{cpu:.3},{}}}}}{comma}"#,
            counted(mark.counts)
        )?;
    }
    writeln!(
        out,
        r#"],"otherData":{{"origin_monotonic_us":{:.3}}}}}"#,
        us(origin)
    )
}

fn counted(counts: Counts) -> String {
    let Counts {
        exits,
        instructions,
        pages,
    } = counts;
    format!(r#""exits":{exits},"instructions":{instructions},"pages":{pages}"#)
}

fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

/// JSON string contents.
fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c < ' ' => vec!['?'],
            c => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disabled_timeline_keeps_nothing() {
        let timeline = Timeline::disabled();
        timeline.mark("a");
        assert!(timeline.marks().is_empty());
    }

    #[test]
    fn marks_are_ordered_and_capped() {
        let timeline = Timeline::new(Instant::now());
        for i in 0..MARKS_MAX + 10 {
            timeline.clone().mark(i.to_string());
        }
        let marks = timeline.marks();
        assert_eq!(marks.len(), MARKS_MAX);
        assert!(marks.is_sorted_by_key(|mark| mark.at));
    }

    #[test]
    fn trace_has_instants_and_spans() {
        let mark = |at, cpu, name: &str| Mark {
            at: Duration::from_micros(at),
            cpu: Duration::from_micros(cpu),
            counts: Counts {
                exits: at,
                instructions: 10 * at,
                pages: cpu,
            },
            name: name.to_owned(),
        };
        let mut out = Vec::new();
        let marks = [mark(1, 1, "a"), mark(4, 3, "b\"\n")];
        write_events(&mut out, Duration::from_micros(9), &marks).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"traceEvents":[
{"name":"a","ph":"i","s":"p","ts":1.000,"pid":1,"tid":1,"args":{"cpu_us":1.000,"exits":1,"instructions":10,"pages":1}},
{"name":"→ b\"?","ph":"X","ts":1.000,"dur":3.000,"pid":1,"tid":1,"args":{"cpu_us":2.000,"exits":3,"instructions":30,"pages":2}},
{"name":"b\"?","ph":"i","s":"p","ts":4.000,"pid":1,"tid":1,"args":{"cpu_us":3.000,"exits":4,"instructions":40,"pages":3}}
],"otherData":{"origin_monotonic_us":9.000}}
"#
        );
    }
}
