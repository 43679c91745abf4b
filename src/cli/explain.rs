//! `vmrun explain`.

use std::fmt::Write;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use vmrun_runtime::Error;
use vmrun_runtime::bundle::Bundle;
use vmrun_runtime::oci::explain::{self, Explanation, Line};
use vmrun_runtime::oci::load;

use super::{FAILED, tell};

/// Prints, property by property, who sees to what the bundle's config.json asks for;
/// fails if the container could not be made.
pub fn explain(bundle: &Path) -> ExitCode {
    match explained(bundle) {
        Ok(explanation) => {
            // Whoever closed stdout does not want to know.
            let _ = std::io::stdout().write_all(text(&explanation).as_bytes());
            if explanation.refusals.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(FAILED)
            }
        }
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}

fn explained(bundle: &Path) -> Result<Explanation, Error> {
    let folder = File::open(bundle).map_err(|source| Error::Bundle {
        path: bundle.to_owned(),
        source,
    })?;
    let mut explanation = explain::explain(&load::read(&folder)?)?;
    if explanation.refusals.is_empty()
        && let Err(error) = Bundle::open(bundle)
    {
        // The text is fine; something that it names on the host is not.
        explanation.refusals.push(Line {
            path: String::from("on this host"),
            count: 1,
            word: "refused",
            note: vmrun_runtime::error::chain(&error),
        });
    }
    Ok(explanation)
}

fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    for line in &explanation.properties {
        let path = match line.count {
            1 => line.path.clone(),
            count => format!("{} ({count})", line.path),
        };
        row(&mut text, &path, line.word, &line.note);
    }
    if explanation.refusals.is_empty() {
        text.push_str("\nThe container can be made.\n");
        return text;
    }
    text.push_str("\nThe container is refused:\n");
    for line in &explanation.refusals {
        row(&mut text, &line.path, line.word, &line.note);
    }
    text
}

/// Widths fit nearly all; what is longer only moves the rest of its line.
fn row(text: &mut String, path: &str, word: &str, note: &str) {
    let line = format!("{path:<44} {word:<14} {note}");
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, count: usize, word: &'static str, note: &str) -> Line {
        Line {
            path: path.to_owned(),
            count,
            word,
            note: note.to_owned(),
        }
    }

    #[test]
    fn a_line_each_and_what_comes_of_it() {
        let mut explanation = Explanation {
            properties: vec![
                line("process.cwd", 1, "guest", ""),
                line("mounts[].type", 3, "guest", "proc and others"),
            ],
            refusals: vec![],
        };
        assert_eq!(
            text(&explanation),
            "process.cwd                                  guest\n\
             mounts[].type (3)                            guest          proc and others\n\n\
             The container can be made.\n"
        );
        explanation.refusals = vec![line("vm", 1, "refused", "why")];
        assert!(text(&explanation).ends_with(
            "\nThe container is refused:\n\
             vm                                           refused        why\n"
        ));
    }
}
