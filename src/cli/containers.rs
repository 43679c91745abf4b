//! The verbs on containers that exist: what they print is runc's.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use vmrun_runtime::Error;
use vmrun_runtime::state::Id;
use vmrun_runtime::state_json::Shown;
use vmrun_runtime::verbs;

use super::settings::Of;
use super::{FAILED, tell, tell_line};

/// `vmrun start`.
pub fn start(of: Of) -> ExitCode {
    done(parsed(of.id).and_then(|id| verbs::start(&of.root, &id)))
}

/// `vmrun kill`.
pub fn kill(of: Of, signal: &str, all: bool) -> ExitCode {
    done(parsed(of.id).and_then(|id| verbs::kill(&of.root, &id, signal, all)))
}

/// `vmrun delete`.
pub fn delete(of: Of, force: bool) -> ExitCode {
    done(parsed(of.id).and_then(|id| verbs::delete(&of.root, &id, force)))
}

/// `vmrun state`.
pub fn state(of: Of) -> ExitCode {
    let shown = parsed(of.id).and_then(|id| Ok(Shown::of(&verbs::describe(&of.root, &id)?)));
    match shown {
        Ok(shown) => print(&shown.to_pretty_json()),
        Err(error) => done(Err(error)),
    }
}

/// `vmrun list`.
pub fn list(root: &Path, format: &str, quiet: bool) -> ExitCode {
    let listed = match verbs::list(root) {
        Ok(listed) => listed,
        Err(error) => return done(Err(error)),
    };
    let shown: Vec<_> = listed.iter().map(Shown::with_owner).collect();
    match (quiet, format) {
        (true, _) => print(
            &shown
                .iter()
                .map(|s| format!("{}\n", s.id))
                .collect::<String>(),
        ),
        (false, "table") => print(&table(&shown)),
        (false, "json") => print(&Shown::list_json(&shown)),
        (false, _) => fail("invalid format option"),
    }
}

/// A verb of runc that vmrun has not.
pub fn unsupported(verb: &str) -> ExitCode {
    fail(&format!(
        "{verb} is not supported: a machine cannot be saved yet"
    ))
}

fn parsed(id: String) -> Result<Id, Error> {
    Ok(Id::new(id)?)
}

fn done(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}

fn fail(line: &str) -> ExitCode {
    tell_line(line);
    ExitCode::from(FAILED)
}

fn print(text: &str) -> ExitCode {
    // Whoever closed stdout does not want to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Columns as wide as runc makes them.
fn table(rows: &[Shown]) -> String {
    const LEAST: usize = 12;
    const GAP: usize = 3;
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        [
            row.id.clone(),
            row.pid.to_string(),
            row.status.to_owned(),
            row.bundle.clone(),
            row.created.clone(),
            row.owner.clone(),
        ]
    });
    let lines: Vec<_> = std::iter::once(header).chain(cells).collect();
    let width = |column: usize| {
        let longest = lines.iter().map(|line| line[column].chars().count()).max();
        (longest.unwrap_or(0) + GAP).max(LEAST)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(widths) {
            text += &format!("{cell:<width$}");
        }
        text += &line[5];
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_runcs() {
        assert_eq!(
            table(&[]),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
        let row = Shown {
            oci_version: "1.0.2",
            id: "c1".to_owned(),
            pid: 15082,
            status: "created",
            bundle: "/tmp/life/b".to_owned(),
            rootfs: "/tmp/life/b/rootfs".to_owned(),
            created: "2026-11-24T02:10:46.695944485Z".to_owned(),
            annotations: Default::default(),
            owner: "root".to_owned(),
        };
        let text = table(&[row]);
        let line = text.lines().nth(1).unwrap();
        assert_eq!(
            line,
            "c1          15082       created     /tmp/life/b   2026-11-24T02:10:46.695944485Z   root"
        );
    }
}
