//! `ociVersion` (config.md, "Specification version").

use crate::Error;

/// The versions of the runtime-spec that vmrun knows, as `vmrun --version` says it.
pub const SPEC: &str = "1.3.0";

/// Accepts 1.0 to 1.3 with any patch level, pre-release and build (runc itself
/// writes `1.0.2-dev`). A later minor may have properties that are unknown here.
pub fn check(version: &str) -> Result<(), Error> {
    let refuse = |problem: String| Err(Error::property("ociVersion", problem));
    if version.is_empty() {
        return refuse("must be present".to_owned());
    }
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = core.split('.').map(number).collect();
    match numbers[..] {
        [Some(1), Some(0..=3), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => {
            refuse(format!("{version:?} is not supported, only 1.0 to 1.3"))
        }
        _ => refuse(format!("{:?} is not a version", shortened(version))),
    }
}

/// A number as semantic versions write it: digits without a leading zero.
fn number(part: &str) -> Option<u64> {
    let canonical = part == "0" || !part.starts_with('0');
    (canonical && part.bytes().all(|b| b.is_ascii_digit()))
        .then(|| part.parse().ok())
        .flatten()
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        for version in ["1.0.0", "1.0.2-dev", "1.1.0+build.7", "1.2.1", "1.3.0-rc.1"] {
            assert!(check(version).is_ok(), "{version}");
        }
    }

    #[test]
    fn refused() {
        for version in [
            "",
            "1",
            "1.0",
            "0.5.0",
            "1.4.0",
            "2.0.0",
            "1.0.x",
            "v1.0.0",
            "01.0.0",
            "1..0",
            "abc",
            "1.0.0.0",
            "+1.0.0",
            "99999999999999999999.0.0",
        ] {
            let message = check(version).unwrap_err().to_string();
            assert!(message.starts_with("ociVersion: "), "{version}: {message}");
        }
    }
}
