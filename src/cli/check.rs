//! `vmrun check`.

use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use vmrun_runtime::check::{self, Finding, Status};

/// Prints what this host offers; fails if no container can be run.
pub fn check(as_json: bool, guest_dir: &Path) -> ExitCode {
    let findings = check::check(guest_dir);
    let usable = findings.iter().all(|f| f.status != Status::Fail);
    let text = if as_json {
        format!("{:#}\n", json!({"ok": usable, "checks": findings}))
    } else {
        table(&findings)
    };
    // Whoever closed stdout does not want to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{status:<5} {:<18} {}", finding.name, finding.found);
        if let Some(advice) = finding.advice {
            let _ = writeln!(text, "{:<24} -> {advice}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_each_and_what_to_do() {
        let finding = |status, advice| Finding {
            name: "thing",
            status,
            found: "found".to_owned(),
            advice,
        };
        let text = table(&[
            finding(Status::Ok, None),
            finding(Status::Fail, Some("do it")),
        ]);
        assert_eq!(
            text,
            "ok    thing              found\n\
             fail  thing              found\n                         -> do it\n"
        );
    }
}
