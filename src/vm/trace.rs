//! Timeline of a start, written in Chrome's trace event format (load it in
//! Perfetto or chrome://tracing).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most marks kept; a guest that floods the milestone port adds none behind it.
const MARKS_MAX: usize = 4096;

/// Collects marks from all threads. Cloning shares the timeline. A disabled one
/// costs a test of an `Option`.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Option<Arc<Marks>>);

#[derive(Debug)]
struct Marks {
    origin: Instant,
    marks: Mutex<Vec<(Duration, String)>>,
}

impl Timeline {
    /// A timeline whose zero is `origin`, the start of the process.
    pub fn new(origin: Instant) -> Self {
        Self(Some(Arc::new(Marks {
            origin,
            marks: Mutex::default(),
        })))
    }

    /// A timeline that keeps nothing.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Notes that `name` happened now.
    pub fn mark(&self, name: impl Into<String>) {
        if let Some(inner) = &self.0 {
            let at = inner.origin.elapsed();
            let mut marks = inner.marks.lock().unwrap_or_else(PoisonError::into_inner);
            if marks.len() < MARKS_MAX {
                marks.push((at, name.into()));
            }
        }
    }

    /// Marks so far, in order of time, as offset from the origin and name.
    pub fn marks(&self) -> Vec<(Duration, String)> {
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
        if self.0.is_none() {
            return Ok(());
        }
        let mut out = BufWriter::new(File::create(path)?);
        write_events(&mut out, &self.marks())?;
        out.flush()
    }
}

/// Trace Event Format, JSON array form; `ts` and `dur` are microseconds.
fn write_events(out: &mut impl Write, marks: &[(Duration, String)]) -> io::Result<()> {
    writeln!(out, "[")?;
    for (i, (at, name)) in marks.iter().enumerate() {
        let name = escape(name);
        let ts = at.as_nanos() as f64 / 1000.0;
        if let Some((before, _)) = i.checked_sub(1).and_then(|p| marks.get(p)) {
            let from = before.as_nanos() as f64 / 1000.0;
            writeln!(
                out,
                r#"{{"name":"→ {name}","ph":"X","ts":{from},"dur":{},"pid":1,"tid":1}},"#,
                ts - from
            )?;
        }
        let comma = if i + 1 == marks.len() { "" } else { "," };
        writeln!(
            out,
            r#"{{"name":"{name}","ph":"i","s":"p","ts":{ts},"pid":1,"tid":1}}{comma}"#
        )?;
    }
    writeln!(out, "]")
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
        assert!(marks.is_sorted_by_key(|(at, _)| *at));
    }

    #[test]
    fn trace_has_instants_and_spans() {
        let marks = [
            (Duration::from_micros(1), "a".to_owned()),
            (Duration::from_micros(3), "b\"\n".to_owned()),
        ];
        let mut out = Vec::new();
        write_events(&mut out, &marks).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                "[\n",
                r#"{"name":"a","ph":"i","s":"p","ts":1,"pid":1,"tid":1},"#,
                "\n",
                r#"{"name":"→ b\"?","ph":"X","ts":1,"dur":2,"pid":1,"tid":1},"#,
                "\n",
                r#"{"name":"b\"?","ph":"i","s":"p","ts":3,"pid":1,"tid":1}"#,
                "\n]\n"
            )
        );
    }
}
